"""One training step: forward and backward, all-reduce, clip, update."""

from __future__ import annotations

from typing import Any

import mxnet as mx

from crepe_dist.data.loader import Batch
from crepe_dist.model.engine import Engine, Mark, no_mark
from crepe_dist.training.loss_scale import loss_scale


class TrainingStep:
    """Trains the network of ``engine`` by one global batch a call, the same on every rank.

    Each rank's gradient is that of the SUM of its documents' losses. Horovod sums it over the ranks (CPU, NCCL before
    2.10) and folds 1/size into ``trainer._scale``, or averages it. Either way ``update(n)`` with n = G/size divides
    the total by G, the documents of the global batch, on every rank alike, whatever the shares are: the gradient that
    one process would compute. With n = its own share instead, the replicas would drift apart without a word.

    Args:
        trainer: Gluon trainer made by ``World.trainer``.
        size: number of ranks.
        seed: of the dropout, together with the step and the documents' places in the global batch.
        clip_norm: largest norm of the mean gradient, or ``None``.

    Attributes:
        mark: told the name of each phase when it was asked for: copy, forward, backward, all-reduce, update.
    """

    def __init__(self, engine: Engine, trainer: Any, size: int, seed: int, clip_norm: float | None) -> None:
        self._engine = engine
        self._trainer = trainer
        self._size = size
        self._seed = seed
        self._clip_norm = clip_norm
        self._loss_scale = loss_scale(engine.plan.precision)
        self.mark: Mark = no_mark
        if engine.device.device_type == "cpu":
            # Several arrays an operator, made for the many small kernels of a GPU, take twice as long on a CPU.
            trainer._optimizer.aggregate_num = 1

    def __call__(self, batch: Batch, step: int, learning_rate: float) -> mx.nd.NDArray:
        """Updates the parameters; returns the sum of this rank's losses, float32 [1], still being computed."""
        scale = self._loss_scale.scale
        loss = self._engine.gradients(batch, self._seed, step, scale, self.mark)
        self._trainer.allreduce_grads()
        self.mark("all-reduce")
        gradients = [p.grad() for p in self._trainer._params]
        share = scale * batch.documents / self._size
        self._loss_scale.guard(gradients)
        if self._clip_norm is not None:
            _clip(gradients, self._trainer._scale / share, self._clip_norm)
        self._trainer.set_learning_rate(learning_rate)
        self._trainer.update(share)
        self.mark("update")
        return loss


def _clip(gradients: list[Any], scale: float, largest: float) -> None:
    """Scales the gradients down where the norm of ``scale`` × gradient, the mean gradient, is above the limit."""
    squares = mx.nd.multi_sum_sq(*gradients, num_arrays=len(gradients))
    norm = squares.sum().sqrt() * scale
    factor = mx.nd.minimum(largest / (norm + 1e-12), 1.0)
    for gradient in gradients:
        gradient[:] = mx.nd.broadcast_mul(gradient, factor.reshape((1,) * gradient.ndim))
