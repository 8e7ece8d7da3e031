"""Handling of steps with a non-finite loss or gradient: skip the step, or end the run."""

from __future__ import annotations

from collections.abc import Iterable

from crepe_dist.data.order import Order, epoch_order, share
from crepe_dist.distributed.watchdog import SHOWN_ROWS
from crepe_dist.errors import UserError
from crepe_dist.training.run import Run
from crepe_dist.training.step import Outcome


def reject(run: Run, outcome: Outcome) -> None:
    """Skip the update of a step whose outcome is not finite, alike on every rank.

    Raises:
        UserError: on every rank, if ``safety.nonfinite`` is stop.
    """
    if not outcome.bad_losses and run.step.scale.lower():
        return
    before = run.progress
    ranks = sorted({*outcome.bad_losses, *outcome.bad_gradients})
    order = epoch_order(len(run.data.splits["train"]), run.config.training.seed, before.epoch)
    stop = before.documents + outcome.documents
    culprits = named(ranks, order, before.documents, stop, run.world.size, run.engine.group_size)
    if run.config.safety.nonfinite == "skip":
        run.metrics.skipped({"step": outcome.step, "epoch": before.epoch, "ranks": ranks})
        run.display.say(f"step {outcome.step} is skipped: non-finite loss or gradient on {culprits}")
        return
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
