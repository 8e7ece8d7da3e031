"""Handling of steps with a non-finite loss or gradient: skip the step, or end the run."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from crepe_dist.data.order import Order, epoch_order, share
from crepe_dist.distributed.watchdog import SHOWN_ROWS
from crepe_dist.errors import UserError
from crepe_dist.runs.metrics import Metrics
from crepe_dist.runs.state import Progress
from crepe_dist.settings.config import Config
from crepe_dist.training.loss_scale import LossScale
from crepe_dist.training.step import Outcome


@dataclass
class NonFiniteGuard:
    """Guard that accepts or rejects each update, alike on every rank.

    Args:
        config: configuration of the run.
        rows: number of documents in the train split.
        size: number of ranks.
        group_size: documents that one rank computes together, see ``Engine.together``.
        scale: the loss scale, lowered after an overflow in float16.
        metrics: metrics that record skipped steps.
        say: prints a line.
    """

    config: Config
    rows: int
    size: int
    group_size: int
    scale: LossScale
    metrics: Metrics
    say: Callable[[str], None]

    def accepts(self, outcome: Outcome, before: Progress) -> bool:
        """Return whether to update the parameters.

        Args:
            outcome: outcome of the step.
            before: progress of the run before the step.

        Raises:
            UserError: on every rank, if the outcome is not finite and ``safety.nonfinite`` is stop.
        """
        if outcome.finite:
            return True
        if not outcome.bad_losses and self.scale.lower():
            return False
        ranks = sorted({*outcome.bad_losses, *outcome.bad_gradients})
        order = epoch_order(self.rows, self.config.training.seed, before.epoch)
        culprits = named(
            ranks, order, before.documents, before.documents + outcome.documents, self.size, self.group_size
        )
        if self.config.safety.nonfinite == "skip":
            self.metrics.skipped({"step": outcome.step, "epoch": before.epoch, "ranks": ranks})
            self.say(f"step {outcome.step} is skipped: non-finite loss or gradient on {culprits}")
            return False
        raise UserError(
            f"training diverged: non-finite loss or gradient at step {outcome.step} on {culprits}",
            "usually the learning rate is too large; the step was discarded",
            "lower optimizer.learning_rate, set optimizer.clip_norm to 1, or skip such steps with --safety.nonfinite "
            "skip; the newest saved state is older than this step",
            on_all_ranks=True,
        )


def named(ranks: Iterable[int], order: Order, start: int, stop: int, size: int, group_size: int) -> str:
    """Name ranks for a message, each with its rows of the batch ``order[start:stop]``."""
    shown = []
    for rank in ranks:
        first, end = share(start, stop, rank, size, group_size)
        rows = order[first:end].tolist()
        listed = ", ".join(map(str, rows[:SHOWN_ROWS]))
        more = f", … {len(rows) - SHOWN_ROWS} more" if len(rows) > SHOWN_ROWS else ""
        shown.append(f"rank {rank} (rows {listed}{more} of the train split)")
    return "; ".join(shown)
