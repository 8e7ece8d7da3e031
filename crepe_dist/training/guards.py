"""Guards and observers of a run: everything beside the recipe that happens during training."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from crepe_dist.data.batch import Batch
from crepe_dist.distributed import crash_report
from crepe_dist.distributed.control import Control, Wish
from crepe_dist.distributed.watchdog import SHOWN_ROWS, Watchdog
from crepe_dist.distributed.world import World
from crepe_dist.runs.run_folder import RunFolder, lock_on_root
from crepe_dist.runs.state import Progress
from crepe_dist.settings.config import Config
from crepe_dist.training.display import Display
from crepe_dist.training.observers.non_finite import reject
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
    """Lock the run's folder within the block, and direct stacks and crash reports to it; every rank calls it.

    Raises:
        UserError: on every rank, if another process trains in the folder.
    """
    with lock_on_root(folder, world, control.is_supervised, display.say):
        watchdog.write_to(folder.stacks(world.rank), world.gather(watchdog.identity(), "processes"))
        crash_report.expect(crash_report.Context(folder.path, config.to_dict(), watchdog.ask_for_stacks))
        yield


class Heartbeat(Observer):
    """Observer that reports each step to the watchdog, and the position of the run in case of a hang."""

    def __init__(self, watchdog: Watchdog, progress: Progress) -> None:
        self._watchdog = watchdog
        self._progress = progress
        self._rows: list[int] = []
        watchdog.locate(self._where)

    def before_step(self, batch: Batch) -> None:
        self._watchdog.beat("train")
        self._rows = batch.rows[:SHOWN_ROWS].tolist()

    def begin_evaluation(self) -> None:
        self._watchdog.beat("evaluate")

    def _where(self) -> dict[str, Any]:
        at = self._progress
        return {"step": at.step, "epoch": at.epoch, "documents": at.documents, "rows": self._rows}


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
            Pictures(run.metrics, run.engine.network, run.data.classes, control, run.progress),
        ]
        if config.logging.profile:
            observers.append(Profile(run.world, run.engine, run.folder, run.step, log, say, config.data.batch_size))
        super().__init__(observers)
        self._control = control
        self._saver = saver
        self._keeper = keeper
        self._run = run

    @property
    def saved_step(self) -> int | None:
        """Step of the newest saved state; ``None`` on ranks other than 0."""
        return self._saver.durable_step

    def wish(self, step: int) -> Wish:
        """Return what this rank wants to do after ``step``: continue, save or stop."""
        return self._keeper.wish(step)

    def accepts(self, outcome: Outcome) -> bool:
        """Return whether to update the parameters: loss and gradients are finite on every rank.

        Raises:
            UserError: on every rank, if a non-finite step ends the run.
        """
        if not outcome.finite:
            reject(self._run, outcome)
        return outcome.finite

    def is_stopping(self) -> bool:
        """Return whether this rank was asked to stop."""
        return self._control.wish is Wish.STOP

    def stop(self) -> None:
        """Save the state and end the run; every rank calls it.

        Raises:
            Stopped: always, unless the state could not be saved.
        """
        self._keeper.stop()
