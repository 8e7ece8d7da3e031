"""Baseline: a reimplementation of the original notebook.

It encodes one character at a time into one-hot float32, uses Gluon's own layers, and makes two forward passes a step.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mxnet as mx
import numpy as np
import numpy.typing as npt
from mxnet import autograd, gluon
from mxnet.gluon import nn

from crepe_dist.data.alphabet import ALPHABET
from crepe_dist.networks.paper.shape import CONVOLUTIONS, POOL, PaperShape

INDEX = {letter: position for position, letter in enumerate(ALPHABET)}


def encode(text: str, feature_len: int) -> npt.NDArray[np.float32]:
    """Encode a text as one-hot float32 [69, feature_len]."""
    encoded = np.zeros([len(ALPHABET), feature_len], dtype="float32")
    for position, letter in enumerate(text):
        if position >= feature_len:
            break
        if letter in INDEX:
            encoded[INDEX[letter]][position] = 1
    return encoded


class Loop:
    """Training loop of the notebook, with two loader processes.

    Args:
        texts: documents; their number is a multiple of ``batch_size``.
        device: MXNet context.
    """

    def __init__(
        self, texts: Sequence[str], labels: Sequence[int], shape: PaperShape, batch_size: int, device: Any
    ) -> None:
        self._network = _network(shape)
        self._device = device
        self._network.initialize(mx.init.Xavier(magnitude=2.24), ctx=device)
        self._network.hybridize()
        self._loss = gluon.loss.SoftmaxCrossEntropyLoss()
        settings = {"learning_rate": 0.01, "wd": 0.00001, "momentum": 0.9}
        self._trainer = gluon.Trainer(self._network.collect_params(), "sgd", settings)
        self._documents = len(texts)
        self._loader = gluon.data.DataLoader(
            _Texts(texts, labels, shape.feature_len), shuffle=True, batch_size=batch_size, num_workers=2
        )

    def __call__(self) -> int:
        """Train on all documents; return their number."""
        for texts, labels in self._loader:
            texts, labels = texts.as_in_context(self._device), labels.as_in_context(self._device)
            self._network(texts)
            with autograd.record():
                loss = self._loss(self._network(texts), labels)
            loss.backward()
            self._trainer.step(texts.shape[0])
            loss.mean().asscalar()
        return self._documents


class _Texts:
    def __init__(self, texts: Sequence[str], labels: Sequence[int], feature_len: int) -> None:
        self._texts = texts
        self._labels = labels
        self._feature_len = feature_len

    def __len__(self) -> int:
        return len(self._texts)

    def __getitem__(self, index: int) -> tuple[npt.NDArray[np.float32], int]:
        return encode(self._texts[index], self._feature_len), self._labels[index]


def _network(shape: PaperShape) -> Any:
    network = nn.HybridSequential()
    for kernel, pooled in CONVOLUTIONS:
        network.add(nn.Conv1D(channels=shape.filters, kernel_size=kernel, activation="relu"))
        if pooled:
            network.add(nn.MaxPool1D(pool_size=POOL, strides=POOL))
    network.add(nn.Flatten())
    for _ in range(2):
        network.add(nn.Dense(shape.units, activation="relu"), nn.Dropout(0.5))
    network.add(nn.Dense(shape.classes))
    return network
