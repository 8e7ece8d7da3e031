"""A training step in three parts: compute the gradients, all-reduce them, update the parameters."""

from __future__ import annotations

from dataclasses import dataclass

import mxnet as mx
import numpy as np

from crepe_dist.data.batch import Batch
from crepe_dist.distributed.control import Wish
from crepe_dist.distributed.gradients import Trainer
from crepe_dist.engines.engine import Engine, Mark, no_mark
from crepe_dist.mxnet_internals import update_arrays_one_by_one, update_arrays_together
from crepe_dist.training.loss_scale import loss_scale
from crepe_dist.training.step_report import StepReport, check_same


@dataclass(frozen=True)
class Outcome:
    """Sums of one step over the ranks; the same on every rank.

    Attributes:
        step: number of the step, counted from 1.
        documents: number of documents in the global batch.
        loss: sum of the losses of the global batch, in nats.
        wish: strongest wish of any rank.
        bad_losses: ranks whose loss is not finite.
        bad_gradients: ranks whose gradients are not finite; all ranks if only the sum overflowed.
    """

    step: int
    documents: int
    loss: float
    wish: Wish
    bad_losses: tuple[int, ...] = ()
    bad_gradients: tuple[int, ...] = ()

    @property
    def finite(self) -> bool:
        return not self.bad_losses and not self.bad_gradients


class TrainingStep:
    """Training step of a network on one global batch.

    Each rank's gradient is that of the SUM of its documents' losses. It is summed over the ranks, and 1/size is folded
    into ``trainer._scale``. ``update(n)`` with n = G/size divides the total by G, the number of documents in the global
    batch. The result is the gradient that one process would compute. If each rank passed the size of its own share
    instead, the replicas would diverge silently.

    Args:
        engine: the network on this rank's device.
        trainer: trainer from ``World.trainer``.
        size: number of ranks.
        seed: random seed of the dropout, which also depends on the step and the place in the global batch.
        clip_norm: largest norm of the mean gradient; ``None``: no clipping.

    Attributes:
        mark: called with the name of each phase at its end: copy, forward, backward, all-reduce, update.
        scale: the loss scale.
    """

    def __init__(self, engine: Engine, trainer: Trainer, size: int, seed: int, clip_norm: float | None) -> None:
        self._engine = engine
        self._trainer = trainer
        self._size = size
        self._seed = seed
        self._clip_norm = clip_norm
        self.scale = loss_scale(engine.plan.precision)
        self._factor = 1.0
        self.mark: Mark = no_mark
        if engine.device.device_type == "cpu":
            update_arrays_one_by_one(trainer.gluon)
        else:
            update_arrays_together(trainer.gluon)

    def gradients(self, batch: Batch, step: int) -> mx.nd.NDArray:
        """Compute the gradients of this rank's share: forward and backward pass.

        Args:
            batch: this rank's share of the global batch.
            step: number of the step, counted from 1; with the seed it decides the dropout.

        Returns:
            Sum of the losses of this rank's documents, in nats; see ``Engine.gradients``.
        """
        if self._trainer.sums:
            self._trainer.sums.begin(batch.documents)
        return self._gradients(batch, step)

    def _gradients(self, batch: Batch, step: int) -> mx.nd.NDArray:
        self._factor = self.scale.factor(self._engine.rows_at_a_time(batch))
        return self._engine.gradients(batch, self._seed, step - 1, self._factor, self.mark)

    def all_reduce(self, batch: Batch, step: int, loss: mx.nd.NDArray, wish: Wish = Wish.GO_ON) -> Outcome:
        """Sum the gradients over the ranks, and with them the losses and wishes.

        Args:
            loss: result of ``gradients``.
            wish: action that this rank wishes for after the step.

        Raises:
            UserError: on every rank, if the ranks are at different steps.
        """
        report = StepReport.row(step, batch.documents, wish)
        reduced = self._trainer.all_reduce(report, loss)
        while not reduced.fits:
            reduced = self._trainer.all_reduce(report, self._gradients(batch, step))
        self.mark("all-reduce")
        reports = [StepReport.of(row) for row in reduced.rows]
        check_same(reports)
        losses = np.array([each.loss for each in reports])
        return Outcome(
            step,
            batch.documents,
            float(losses.sum()),
            max(each.wish for each in reports),
            tuple(np.flatnonzero(~np.isfinite(losses)).tolist()),
            reduced.not_finite,
        )

    def update(self, documents: int, learning_rate: float) -> None:
        """Update the parameters with the summed gradients of a global batch of that many documents."""
        self.scale.good()
        self._trainer.update(self._factor * documents / self._size, learning_rate, self._clip_norm)
        self.mark("update")

    def flush(self) -> None:
        """Bring all parameters up to date for scoring and checkpoints; every rank calls it."""
        self._trainer.flush()

    def __call__(self, batch: Batch, step: int, learning_rate: float) -> Outcome:
        """Do all three parts; if the outcome is not finite, leave the parameters unchanged."""
        outcome = self.all_reduce(batch, step, self.gradients(batch, step))
        if outcome.finite:
            self.update(batch.documents, learning_rate)
        else:
            self.scale.lower()
        return outcome
