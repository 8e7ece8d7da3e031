"""One training step: forward, backward, all-reduce, clip, update."""

from __future__ import annotations

from typing import Any

import mxnet as mx
import numpy as np
from mxnet import autograd, gluon

from crepe_dist.data.loader import Batch
from crepe_dist.model.network import Crepe


class TrainingStep:
    """Trains ``network`` by one global batch a call, the same on every rank.

    Each rank's gradient is that of the SUM of its documents' losses. Horovod sums it over the ranks (CPU, NCCL before
    2.10) and folds 1/size into ``trainer._scale``, or averages it. Either way ``update(n)`` with n = G/size divides
    the total by G, the documents of the global batch, on every rank alike, whatever the shares are: the gradient that
    one process would compute. With n = its own share instead, the replicas would drift apart without a word.

    Args:
        trainer: Gluon trainer made by ``World.trainer``.
        size: number of ranks.
        seed: of the dropout, together with rank and step; MXNet has no way to save its random state.
        clip_norm: largest norm of the mean gradient, or ``None``.
    """

    def __init__(
        self, network: Crepe, trainer: Any, device: Any, rank: int, size: int, seed: int, clip_norm: float | None
    ) -> None:
        self._network = network
        self._trainer = trainer
        self._device = device
        self._rank = rank
        self._size = size
        self._seed = seed
        self._clip_norm = clip_norm
        self._loss = gluon.loss.SoftmaxCrossEntropyLoss()
        self._gradients = [p.grad(device) for p in trainer._params if p.grad_req != "null"]

    def __call__(self, batch: Batch, step: int, learning_rate: float) -> mx.nd.NDArray:
        """Updates the parameters; returns the sum of this rank's losses, float32 [1], still being computed."""
        codes, labels, weights = batch.on(self._device)
        if self._network.shape.dropout:
            mx.random.seed(_dropout_seed(self._seed, self._rank, step))
        with autograd.record():
            loss = self._loss(self._network(codes), labels, weights).sum()
        loss.backward()
        share = batch.documents / self._size
        self._trainer.set_learning_rate(learning_rate)
        self._trainer.allreduce_grads()
        if self._clip_norm is not None:
            self._clip(self._trainer._scale / share)
        self._trainer.update(share)
        return loss

    def _clip(self, scale: float) -> None:
        """Scales the gradients down where the norm of ``scale`` × gradient, the mean gradient, is above the limit."""
        squares = mx.nd.multi_sum_sq(*self._gradients, num_arrays=len(self._gradients))
        norm = squares.sum().sqrt() * scale
        factor = mx.nd.minimum(self._clip_norm / (norm + 1e-12), 1.0)
        for gradient in self._gradients:
            gradient[:] = mx.nd.broadcast_mul(gradient, factor.reshape((1,) * gradient.ndim))


def _dropout_seed(seed: int, rank: int, step: int) -> int:
    return int(np.random.SeedSequence([seed, rank, step]).generate_state(1)[0]) & 0x7FFFFFFF
