"""One training step: forward and backward, exchange, clip, update."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import mxnet as mx
import numpy as np

from crepe_dist.data.loader import Batch
from crepe_dist.distributed.control import Wish
from crepe_dist.distributed.gradients import Exchange
from crepe_dist.model.engine import Engine, Mark, no_mark
from crepe_dist.training.loss_scale import loss_scale
from crepe_dist.training.step_report import Report, check_same


@dataclass(frozen=True)
class Outcome:
    """Of a step, the same on every rank.

    Attributes:
        loss: sum of the losses of the global batch, in nats.
        wish: the strongest of any rank.
        updated: false where a loss or gradient was not finite, and the step was left out.
    """

    loss: float
    wish: Wish
    updated: bool = True


class NotFinite(Exception):
    """Loss or gradient of a step hold an infinity or NaN; raised on every rank, before the update.

    Attributes:
        ranks: whose; all of them where only the sum overflowed.
        outcome: of the step all the same.
    """

    def __init__(self, ranks: tuple[int, ...], outcome: Outcome) -> None:
        super().__init__(f"not finite on ranks {ranks}")
        self.ranks = ranks
        self.outcome = outcome


class TrainingStep:
    """Trains the network of ``engine`` by one global batch a call, the same on every rank.

    Each rank's gradient is that of the SUM of its documents' losses. Horovod sums it over the ranks (CPU, NCCL before
    2.10) and folds 1/size into ``trainer._scale``, or averages it. Either way ``update(n)`` with n = G/size divides
    the total by G, the documents of the global batch, on every rank alike, whatever the shares are: the gradient that
    one process would compute. With n = its own share instead, the replicas would drift apart without a word.

    Args:
        exchange: made by ``World.trainer``.
        size: number of ranks.
        seed: of the dropout, together with the step and the documents' places in the global batch.
        clip_norm: largest norm of the mean gradient, or ``None``.

    Attributes:
        mark: told the name of each phase when it was asked for: copy, forward, backward, all-reduce, update.
        scale: of the loss.
    """

    def __init__(self, engine: Engine, exchange: Exchange, size: int, seed: int, clip_norm: float | None) -> None:
        self._engine = engine
        self._exchange = exchange
        self._trainer = exchange.trainer
        self._size = size
        self._seed = seed
        self._clip_norm = clip_norm
        self.scale = loss_scale(engine.plan.precision)
        self.mark: Mark = no_mark
        if engine.device.device_type == "cpu":
            # Several arrays an operator, made for the many small kernels of a GPU, take twice as long on a CPU.
            self._trainer._optimizer.aggregate_num = 1

    def __call__(self, batch: Batch, step: int, learning_rate: float, wish: Wish = Wish.GO_ON) -> Outcome:
        """Updates the parameters, unless a loss or gradient is not finite on some rank.

        Args:
            step: its number, counted from 1.
            wish: of this rank.

        Raises:
            NotFinite: on every rank, with the parameters as they were.
        """
        scale = self.scale.scale
        loss = self._engine.gradients(batch, self._seed, step - 1, scale, self.mark)
        report = Report(step, batch.documents, float(loss.asscalar()), wish)
        exchanged = self._exchange(report.row())
        self.mark("all-reduce")
        reports = [Report.of(row) for row in exchanged.rows]
        check_same(reports)
        losses = np.array([each.loss for each in reports])
        outcome = Outcome(float(losses.sum()), max(each.wish for each in reports))
        bad_losses = np.flatnonzero(~np.isfinite(losses)).tolist()
        if exchanged.not_finite or bad_losses:
            left_out = replace(outcome, updated=False)
            if not bad_losses and self.scale.lower():
                return left_out
            raise NotFinite(tuple(sorted({*bad_losses, *exchanged.not_finite})), left_out)
        self.scale.good()
        share = scale * batch.documents / self._size
        if self._clip_norm is not None:
            _clip(self._exchange.gradients, self._trainer._scale / share, self._clip_norm)
        self._trainer.set_learning_rate(learning_rate)
        self._trainer.update(share)
        self.mark("update")
        return outcome


def _clip(gradients: list[Any], scale: float, largest: float) -> None:
    """Scales the gradients down where the norm of ``scale`` × gradient, the mean gradient, is above the limit."""
    squares = mx.nd.multi_sum_sq(*gradients, num_arrays=len(gradients))
    norm = squares.sum().sqrt() * scale
    factor = mx.nd.minimum(largest / (norm + 1e-12), 1.0)
    for gradient in gradients:
        gradient[:] = mx.nd.broadcast_mul(gradient, factor.reshape((1,) * gradient.ndim))
