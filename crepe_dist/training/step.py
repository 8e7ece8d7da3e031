"""A training step: compute and sum the gradients, then update the parameters."""

from __future__ import annotations

import math
from dataclasses import dataclass

from crepe_dist.data.batch import Batch
from crepe_dist.distributed.control import Wish
from crepe_dist.engines.engine import Engine, Mark, no_mark
from crepe_dist.errors import ExitCode, UserError
from crepe_dist.exchange.exchange import Exchange, Reduced

# The first loss scale keeps the largest gradient of the first steps seven times below float16's limit.
FIRST_SCALE, LARGEST_SCALE = 2.0**13, 2.0**24
GROW_AFTER = 2000  # steps without an overflow


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


class LossScale:
    """Scale of the loss in float16 (Micikevicius et al. 2018, arXiv:1710.03740).

    It is halved after an overflow, and doubled after ``GROW_AFTER`` steps without one.

    Attributes:
        scale: factor of a MEAN loss; ``None`` in other precisions. Gradients of a sum over n documents are up to n
            times as large, so its factor is ``scale`` / n, with n rounded up to a power of two, which keeps the
            division exact. A scale thus suits any batch size and number of processes.
    """

    def __init__(self, precision: str) -> None:
        self.scale = FIRST_SCALE if precision == "float16" else None
        self._good = 0

    def factor(self, rows: int) -> float:
        """Return the factor of a loss that is a sum over ``rows`` documents, before the backward pass."""
        return 1.0 if self.scale is None else self.scale / (1 << (rows - 1).bit_length())

    def good(self) -> None:
        """Record a step whose summed gradients were finite."""
        self._good += 1
        if self.scale is not None and self._good == GROW_AFTER:
            self._good = 0
            self.scale = min(LARGEST_SCALE, self.scale * 2)

    def lower(self) -> bool:
        """Lower the scale after an overflow; return false if it cannot be lower, so the cause is another one."""
        self._good = 0
        if self.scale is None or self.scale == 1.0:
            return False
        self.scale /= 2
        return True

    def state(self) -> list[float]:
        """Return the state for ``restore``."""
        return [] if self.scale is None else [self.scale, float(self._good)]

    def restore(self, state: list[float]) -> None:
        """Continue from ``state``; ignore that of another precision."""
        if state and self.scale is not None:
            self.scale, self._good = state[0], int(state[1])


class TrainingStep:
    """Training step of a network on one global batch.

    Each rank's gradient is that of the SUM of its documents' losses. The sum over the ranks, divided by the number of
    documents in the global batch, is the gradient that one process would compute.

    Args:
        seed: random seed of the dropout, which also depends on the step and the position in the global batch.
        clip_norm: largest norm of the mean gradient; ``None``: no clipping.

    Attributes:
        engine, exchange: as given.
        mark: called with the name of each phase at its end: copy, forward, backward, all-reduce, update.
    """

    def __init__(self, engine: Engine, exchange: Exchange, seed: int = 0, clip_norm: float | None = None) -> None:
        self.engine = engine
        self.exchange = exchange
        self._seed = seed
        self._clip_norm = clip_norm
        self.scale = LossScale(engine.plan.precision)
        self._factor = 1.0
        self.mark: Mark = no_mark

    def sum(self, batch: Batch, step: int, wish: Wish = Wish.GO_ON) -> Outcome:
        """Compute the gradients of this rank's share, and sum them over the ranks, with the losses and wishes.

        Args:
            step: number of the step, counted from 1; with the seed it decides the dropout.
            wish: action that this rank wishes for after the step.

        Raises:
            UserError: on every rank, if the ranks are at different steps.
        """
        self._factor = self.scale.factor(self.engine.summed_documents(batch))
        reduced = self.exchange.sum(
            lambda: self.engine.gradients(batch, self._seed, step - 1, self._factor, self.mark),
            (step, batch.documents, wish),
            batch.documents,
        )
        self.mark("all-reduce")
        check_same(reduced)
        bad_losses = tuple(rank for rank, loss in enumerate(reduced.losses) if not math.isfinite(loss))
        strongest = Wish(max(wish for _, _, wish in reduced.numbers))
        return Outcome(step, batch.documents, sum(reduced.losses), strongest, bad_losses, reduced.not_finite)

    def update(self, documents: int, learning_rate: float) -> None:
        """Update the parameters with the summed gradients of a global batch of that many documents."""
        self.scale.good()
        self.exchange.update(self._factor * documents, learning_rate, self._clip_norm)
        self.mark("update")

    def __call__(self, batch: Batch, step: int, learning_rate: float) -> Outcome:
        """Do both parts; if the outcome is not finite, leave the parameters unchanged."""
        outcome = self.sum(batch, step)
        if outcome.finite:
            self.update(batch.documents, learning_rate)
        else:
            self.scale.lower()
        return outcome


def check_same(reduced: Reduced) -> None:
    """Check that all ranks are at the same step with the same batch; else the replicas would diverge silently.

    Raises:
        UserError: on every rank, if step or batch differ.
    """
    step, documents, *_ = reduced.numbers[0]
    for rank, (other_step, other_documents, *_) in enumerate(reduced.numbers):
        if (other_step, other_documents) != (step, documents):
            raise UserError(
                f"the processes are at different steps: rank 0 at step {step} of {documents} documents, "
                f"rank {rank} at step {other_step} of {other_documents}",
                "a bug in crepe_dist, or data that changed during the run",
                "run the same command again to resume from the newest saved state",
                on_all_ranks=True,
                code=ExitCode.FAILURE,
            )
