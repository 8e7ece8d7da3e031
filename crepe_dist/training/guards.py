"""Guards and observers of a run: everything beside the recipe that happens during training."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from crepe_dist.data.batch import Batch
from crepe_dist.data.loader import training_order
from crepe_dist.data.order import Order, share
from crepe_dist.distributed import crash_report
from crepe_dist.distributed.control import Control, Wish
from crepe_dist.distributed.watchdog import SHOWN_ROWS, Watchdog
from crepe_dist.distributed.world import World
from crepe_dist.errors import UserError
from crepe_dist.runs.run_folder import RunFolder, lock_on_root
from crepe_dist.runs.state import Progress
from crepe_dist.settings.config import Config
from crepe_dist.training.display import Display
from crepe_dist.training.observers.not_learning import NotLearning
from crepe_dist.training.observers.observer import Observer, Observers
from crepe_dist.training.observers.pictures import Pictures
from crepe_dist.training.observers.state_keeper import StateKeeper
from crepe_dist.training.observers.step_log import StepLog
from crepe_dist.training.observers.step_profile import Profile
from crepe_dist.training.resume import RunState
from crepe_dist.training.run import Run
from crepe_dist.training.state_saver import Saver
from crepe_dist.training.step import Outcome


@contextmanager
def watched(config: Config, world: World, control: Control) -> Iterator[Watchdog]:
    """Run the watchdog of this rank within the block."""
    with Watchdog(control, config.safety.watchdog_s, world.rank) as watchdog:
        world.beat, world.before_long_wait = watchdog.beat, watchdog.before_long_wait
        yield watchdog


@contextmanager
def guarded(
    folder: RunFolder, config: Config, world: World, control: Control, watchdog: Watchdog, display: Display
) -> Iterator[None]:
    """Lock the run's folder within the block, and direct stacks and crash reports to it; every rank calls it."""
    with lock_on_root(folder, world, control.is_supervised, display.say):
        watchdog.write_to(folder.stacks(world.rank), world.gather(watchdog.identity(), "processes"))
        crash_report.expect(crash_report.Context(folder.path, config.to_dict(), watchdog.ask_for_stacks))
        yield


class Heartbeat(Observer):
    """Observer that reports each step to the watchdog, and the position of the run in case of a hang."""

    def __init__(self, watchdog: Watchdog, progress: Progress) -> None:
        self._watchdog = watchdog
        self._progress = progress
        self._rows: Order = np.zeros(0, np.int64)
        watchdog.locate(self._where)

    def before_step(self, batch: Batch) -> None:
        self._watchdog.beat("train")
        self._rows = batch.rows

    def begin_evaluation(self) -> None:
        self._watchdog.beat("evaluate")

    def _where(self) -> dict[str, Any]:
        at = self._progress
        return {"step": at.step, "epoch": at.epoch, "documents": at.documents, "rows": self._rows[:SHOWN_ROWS].tolist()}


class Guards(Observers):
    """Observers of a run, with the decisions that the recipe asks for: whether to update, save or stop."""

    def __init__(self, run: Run, state: RunState, saver: Saver, watchdog: Watchdog, control: Control) -> None:
        config, say = run.config, run.display.say
        log = StepLog(config, run.data, run.engine, run.progress, run.metrics, run.display)
        keeper = StateKeeper(run, state, saver, log, control, watchdog.beat)
        observers: list[Observer] = [
            Heartbeat(watchdog, run.progress),
            NotLearning.of(config, run.data, run.engine, say),
            log,
            keeper,
            Pictures(run, control),
        ]
        if config.logging.profile:
            observers.append(Profile(run, log))
        super().__init__(observers)
        self._control = control
        self._saver = saver
        self._keeper = keeper
        self._run = run

    @property
    def saved_step(self) -> int | None:
        """Step of the newest saved state; ``None`` on ranks other than 0."""
        return self._saver.durable_step

    @property
    def saved_epochs(self) -> frozenset[int]:
        """Numbers of scored epochs of the states from which the run may resume."""
        return self._saver.epochs

    def wish(self, step: int) -> Wish:
        """Return what this rank wants to do after ``step``: continue, save or stop."""
        return self._keeper.wish(step)

    def accepts(self, outcome: Outcome) -> bool:
        """Return whether to update the parameters: loss and gradients are finite on every rank.

        Raises:
            UserError: on every rank, if a non-finite step ends the run.
        """
        if not outcome.finite:
            _reject(self._run, outcome)
        return outcome.finite

    def is_stopping(self) -> bool:
        """Return whether this rank was asked to stop."""
        return self._control.wish is Wish.STOP

    def stop(self) -> None:
        """Save the state and end the run; every rank calls it."""
        self._keeper.stop()


def _reject(run: Run, outcome: Outcome) -> None:
    """Skip the update of a step whose outcome is not finite, alike on every rank."""
    if not outcome.bad_losses and run.step.scale.lower():
        return
    before, train = run.progress, run.data.splits["train"]
    ranks = sorted({*outcome.bad_losses, *outcome.bad_gradients})
    order = training_order(train, run.config.training.seed, before.epoch, run.config.data.batch_size)
    stop = before.documents + outcome.documents
    culprits = _named(ranks, order, before.documents, stop, run.world.size, run.engine.group_size)
    if run.config.safety.nonfinite == "skip":
        run.metrics.skipped({"step": outcome.step, "epoch": before.epoch, "ranks": ranks})
        run.display.say(f"step {outcome.step} is skipped: non-finite loss or gradient on {culprits}")
        return
    raise UserError(
        f"training diverged: non-finite loss or gradient at step {outcome.step} on {culprits}",
        "the learning rate is probably too large; the step was discarded",
        "lower optimizer.learning_rate, set optimizer.clip_norm to 1, or skip such steps with --safety.nonfinite "
        "skip; the newest saved state is older than this step",
        on_all_ranks=True,
    )


def _named(ranks: Iterable[int], order: Order, start: int, stop: int, size: int, group_size: int) -> str:
    """Name ranks for a message, each with its rows of the batch ``order[start:stop]``."""
    shown = []
    for rank in ranks:
        first, end = share(start, stop, rank, size, group_size)
        rows = order[first:end].tolist()
        listed = ", ".join(map(str, rows[:SHOWN_ROWS]))
        more = f", … {len(rows) - SHOWN_ROWS} more" if len(rows) > SHOWN_ROWS else ""
        shown.append(f"rank {rank} (rows {listed}{more} of the train split)")
    return "; ".join(shown)
