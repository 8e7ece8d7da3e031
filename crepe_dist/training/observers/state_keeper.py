"""Saving the state of a run while it trains, and stopping it without a loss."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

from crepe_dist.distributed.collectives import Collectives
from crepe_dist.distributed.control import Control, Wish
from crepe_dist.errors import UserError
from crepe_dist.runs.metrics import Metrics
from crepe_dist.runs.scores import Scores
from crepe_dist.training.observers.observer import Observer
from crepe_dist.training.observers.replicas import check_replicas
from crepe_dist.training.observers.step_log import StepLog
from crepe_dist.training.resume import RunState
from crepe_dist.training.state_saver import Saver
from crepe_dist.training.step import Outcome


class StateKeeper(Observer):
    """Does after a step what the ranks agreed on: saves the state, or saves it and stops.

    Args:
        saver: writes on rank 0, does nothing on the others.
        beat: told of a save: a sign of life for the watchdog.
        fresh: whether the command started another run although one exists.
    """

    def __init__(
        self,
        run: RunState,
        saver: Saver,
        log: StepLog,
        metrics: Metrics,
        ranks: Collectives,
        control: Control,
        say: Callable[[str], None],
        beat: Callable[[str], None],
        *,
        fresh: bool,
    ) -> None:
        self._run = run
        self._saver = saver
        self._log = log
        self._metrics = metrics
        self._ranks = ranks
        self._control = control
        self._say = say
        self._beat = beat
        self._fresh = fresh

    def wish(self, step: int) -> Wish:
        """Return what this rank wishes to be done after ``step``."""
        return max(self._control.wish, Wish.SAVE if self._saver.due(step) else Wish.GO_ON)

    def after_step(self, outcome: Outcome, learning_rate: float) -> None:
        if outcome.wish is Wish.STOP:
            self.stop()
        elif outcome.wish is Wish.SAVE:
            self.save()

    def after_epoch(self, record: dict[str, Any], scores: dict[str, Scores]) -> None:
        self.save()

    def finish(self) -> None:
        self._saver.close()

    def save(self) -> None:
        """Start to write the state on rank 0; every rank calls it."""
        progress = self._run.progress
        self._beat("save")
        self._log.flush()
        check_replicas(self._run.engine.network, self._ranks)
        try:
            # Before the state, which relies on them.
            self._metrics.sync()
            if self._ranks.is_root:
                self._saver.save(self._run.snapshot())
        except OSError as error:
            self._saver.postpone(progress.step)
            self._say(f"the state of step {progress.step} could not be saved: {error}")
        self._log.restart_clock()

    def stop(self) -> NoReturn:
        """Save the state and end the run once it is on the disk; every rank calls it.

        Raises:
            Stopped: always, unless the state could not be saved.
            UserError: the last steps could not be saved.
        """
        self.save()
        step = self._run.progress.step
        stopped = self._control.stopped(on_all_ranks=True)
        self._saver.wait()
        if self._saver.durable_step not in (None, step):
            raise UserError(
                f"the steps after step {self._saver.durable_step} could not be saved",
                remedy="make room, and run the command again",
            )
        again = "the same command without --fresh" if self._fresh else "the same command"
        self._say(f"{stopped}: saved after step {step}; {again} resumes from there")
        self._saver.close()
        self._log.finish()
        raise stopped
