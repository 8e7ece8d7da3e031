"""Workloads of the benchmarks, for this package and for the original notebook.

Most functions do one unit of work, and return the number of its documents.
"""

import time
from collections.abc import Iterator, Sequence
from typing import Any, cast

import mxnet as mx
import numpy as np
import numpy.typing as npt
from mxnet import autograd, gluon
from mxnet.gluon import nn

from crepe_dist.data.batch import Batch, pack_batch
from crepe_dist.data.batch_schedule import equal_batches
from crepe_dist.data.char_encoder import ALPHABET, CharEncoder, CharIds
from crepe_dist.data.dataset import Split
from crepe_dist.data.loader import DataLoader, epoch_order
from crepe_dist.distributed.process_group import ProcessGroup
from crepe_dist.engines.engine import Engine, create_engine
from crepe_dist.engines.gluon_engine import mxnet_context
from crepe_dist.model.backend import choose_backend
from crepe_dist.native.constants import PAPER_POOL
from crepe_dist.networks.paper.config import CONVOLUTIONS, PaperConfig
from crepe_dist.networks.paper.init import init_parameters
from crepe_dist.preparing.building import MAX_CHUNK
from crepe_dist.settings.options import ModelOptions, OptimizerOptions, Precision

OPTIMIZER = OptimizerOptions(name="sgd", learning_rate=0.01)
NOTEBOOK_SGD = {"learning_rate": 0.01, "wd": 0.00001, "momentum": 0.9}  # hyperparameters of the notebook's optimizer
CHAR_INDEX = {letter: position for position, letter in enumerate(ALPHABET)}


class Training:
    """Training steps of this package."""

    def __init__(self, shape: PaperConfig, group: ProcessGroup, device: Any, precision: Precision = "auto") -> None:
        self.engine = _engine(shape, device, precision)
        self._optimizer = self.engine.create_optimizer(group, OPTIMIZER, 0)
        self._steps = 0

    def repeat(self, batch: Batch, times: int) -> int:
        """Train ``times`` steps on the same batch."""
        return self.train(batch for _ in range(times))

    def train_on_texts(
        self, texts: Sequence[str], labels: Sequence[int], encoding: CharEncoder, batch_size: int
    ) -> int:
        """Encode all texts and train on them in batches."""

        def encoded() -> Iterator[Batch]:
            label_array = np.asarray(labels, dtype=np.int32)
            for start in range(0, len(texts), batch_size):
                char_ids = encoding.encode(texts[start : start + batch_size])
                yield pack_batch(char_ids, label_array[start : start + batch_size], batch_size, len(char_ids))

        return self.train(encoded())

    def train(self, batches: Iterator[Batch]) -> int:
        """Train one step on each batch. Return the number of documents of all ranks."""
        documents = 0
        for batch in batches:
            self._steps += 1
            batch = batch.for_step(self._steps, seed=0)
            while self._optimizer.all_reduce(self.engine.forward_backward(batch), batch).needs_recompute:
                pass
            self._optimizer.step(batch.global_batch_size, 0.01)
            documents += batch.global_batch_size
        self.engine.wait()
        return documents


class Forward:
    """Forward pass of one batch. It includes the copy of the logits to the host."""

    def __init__(self, shape: PaperConfig, device: Any, batch: Batch, precision: Precision) -> None:
        self._engine = _engine(shape, device, precision)
        self._engine.load_weights()
        self._batch = batch

    def __call__(self) -> int:
        self._engine.logits(self._batch)
        return self._batch.global_batch_size


def _engine(shape: PaperConfig, device: Any, precision: Precision) -> Engine:
    options = ModelOptions(precision=precision)
    return create_engine(shape, init_parameters(shape, seed=0), choose_backend(options, device, shape), device=device)


def precisions(shape: PaperConfig, device: Any) -> list[Precision]:
    """Return float32, and also the default precision of the device if it is different."""
    best = choose_backend(ModelOptions(), device, shape).precision
    return ["float32"] if best == "float32" else ["float32", cast("Precision", best)]


def batch_of(char_ids: CharIds, classes: int, size: int = 1, first: int = 0) -> Batch:
    """Return the batch of one rank.

    Args:
        char_ids: character ids, uint8 [B, L].
        classes: number of classes.
        size: number of ranks.
        first: label of the first document. The labels of the next documents are ``first`` + 1, ``first`` + 2, and so
            on, modulo ``classes``.
    """
    labels = (np.arange(len(char_ids), dtype=np.int32) + first) % classes
    return pack_batch(char_ids, labels, len(char_ids), len(char_ids) * size)


def random_batch(shape: PaperConfig, documents: int, size: int = 1, seed: int = 0) -> Batch:
    """Return a batch of random documents for one of ``size`` ranks."""
    array_shape = [documents, shape.feature_len]
    char_ids = np.random.default_rng(seed).integers(0, shape.alphabet_size, array_shape, dtype=np.uint8)
    return batch_of(char_ids, shape.num_classes, size, seed)


def encode(texts: Sequence[str], encoding: CharEncoder) -> int:
    """Encode texts in chunks of the size that ``prepare`` uses."""
    for start in range(0, len(texts), MAX_CHUNK):
        encoding.encode(texts[start : start + MAX_CHUNK])
    return len(texts)


def load(split: Split, batch_size: int) -> int:
    """Load the batches of one epoch, without training."""
    order = epoch_order(len(split), 0, 0)
    return sum(
        batch.global_batch_size for batch in DataLoader(split, order, equal_batches(len(order), batch_size), 0, 1)
    )


def waiting(split: Split, batch_size: int, step: float) -> float:
    """Return the fraction of an epoch, 0 to 1, that is spent waiting for data if a step takes ``step`` seconds."""
    source = iter(DataLoader(split, epoch_order(len(split), 0, 0), equal_batches(len(split), batch_size), 0, 1))
    next(source)  # The first call starts the prefetching thread.
    start, waited = time.perf_counter(), 0.0
    while True:
        requested = time.perf_counter()
        batch = next(source, None)
        waited += time.perf_counter() - requested
        if batch is None:
            break
        time.sleep(step)
        del batch  # The time for freeing the batch does not count as waiting.
    return waited / (time.perf_counter() - start)


def notebook_encode(text: str, feature_len: int) -> npt.NDArray[np.float32]:
    """Encode a text character by character, as the notebook does. Return a one-hot float32 array [69, feature_len]."""
    encoded = np.zeros([len(ALPHABET), feature_len], dtype="float32")
    for position, letter in enumerate(text):
        if position >= feature_len:
            break
        if letter in CHAR_INDEX:
            encoded[CHAR_INDEX[letter]][position] = 1
    return encoded


class NotebookTraining:
    """Training loop of the notebook. It has two loader processes, Gluon's layers, and two forward passes per step.

    Args:
        texts: documents. Their number is a multiple of ``batch_size``.
        device: device on which the network is computed.
    """

    def __init__(
        self, texts: Sequence[str], labels: Sequence[int], shape: PaperConfig, batch_size: int, device: Any
    ) -> None:
        self._network = notebook_network(shape)
        self._device = mxnet_context(device)
        self._network.initialize(mx.init.Xavier(magnitude=2.24), ctx=self._device)
        self._network.hybridize()
        self._loss = gluon.loss.SoftmaxCrossEntropyLoss()
        self._trainer = gluon.Trainer(self._network.collect_params(), "sgd", NOTEBOOK_SGD)
        self._documents = len(texts)
        rows = [(text, label) for text, label in zip(texts, labels)]
        data = gluon.data.SimpleDataset(rows).transform(_Encoding(shape.feature_len))
        self._loader = gluon.data.DataLoader(data, shuffle=True, batch_size=batch_size, num_workers=2)

    def __call__(self) -> int:
        """Train on all documents."""
        for texts, labels in self._loader:
            texts, labels = texts.as_in_context(self._device), labels.as_in_context(self._device)
            self._network(texts)
            with autograd.record():
                loss = self._loss(self._network(texts), labels)
            loss.backward()
            self._trainer.step(texts.shape[0])
            loss.mean().asscalar()
        return self._documents


class _Encoding:
    def __init__(self, feature_len: int) -> None:
        self._feature_len = feature_len

    def __call__(self, text: str, label: int) -> tuple[npt.NDArray[np.float32], int]:
        return notebook_encode(text, self._feature_len), label


def notebook_network(shape: PaperConfig) -> Any:
    """Build the network of the notebook. The tests also use it, to write weights files like those of the notebook."""
    network = nn.HybridSequential()
    with network.name_scope():
        for kernel, pooled in CONVOLUTIONS:
            network.add(nn.Conv1D(channels=shape.filters, kernel_size=kernel, activation="relu"))
            if pooled:
                network.add(nn.MaxPool1D(pool_size=PAPER_POOL, strides=PAPER_POOL))
        network.add(nn.Flatten())
        for _ in range(2):
            network.add(nn.Dense(shape.units, activation="relu"), nn.Dropout(0.5))
        network.add(nn.Dense(shape.num_classes))
    return network
