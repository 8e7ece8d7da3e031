"""Observer that saves the state of a run, and stops the run without losing a step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from crepe_dist.distributed.control import Control, Wish
from crepe_dist.errors import UserError
from crepe_dist.runs.checkpoint import AnyScores
from crepe_dist.training.observers.observer import Observer
from crepe_dist.training.observers.step_log import StepLog
from crepe_dist.training.replicas import check_replicas
from crepe_dist.training.resume import RunState
from crepe_dist.training.run import Run
from crepe_dist.training.state_saver import Saver
from crepe_dist.training.step import Outcome


@dataclass(eq=False)
class StateKeeper(Observer):
    """Observer that saves the state after a step or an epoch, and stops the run, as the ranks have agreed.

    It compares the replicas before each save, after each epoch, and every ``safety.digest_every`` steps.

    Args:
        saver: saver of this rank; only that of rank 0 writes.
        beat: reports a save to the watchdog.
    """

    run: Run
    state: RunState
    saver: Saver
    log: StepLog
    control: Control
    beat: Callable[[str], None]

    def wish(self, step: int) -> Wish:
        """Return what this rank wants to do after ``step``."""
        return max(self.control.wish, Wish.SAVE if self.saver.due(step) else Wish.GO_ON)

    def after_step(self, outcome: Outcome, learning_rate: float) -> None:
        every = self.run.config.safety.digest_every
        if outcome.wish is Wish.STOP:
            self.stop()
        elif outcome.wish is Wish.SAVE:
            self.save()
        elif every is not None and outcome.step % every == 0:
            self.compare()

    def after_epoch(self, record: dict[str, Any], scores: Mapping[str, AnyScores]) -> None:
        """Save if it is time to, unless the run is finished; or if the states are kept."""
        progress = self.run.progress
        is_due = self.run.config.checkpoint.keep_state or (not progress.finished and self.saver.due(progress.step))
        if self.run.world.broadcast(is_due, "save after epoch"):
            self.save()
        else:
            self.compare()

    def finish(self) -> None:
        self.saver.close()

    def compare(self) -> None:
        if self.run.world.size > 1:
            self.state.exchange.publish()
        check_replicas(self.run.engine.values(), self.run.world)

    def save(self) -> None:
        """Start to write the state on rank 0; every rank calls it."""
        self.beat("save")
        self.log.flush()
        self.compare()
        try:
            # The state relies on the metrics, so they go first.
            self.run.metrics.sync()
            if self.run.world.is_root:
                self.saver.save(self.state.snapshot())
        except OSError as error:
            step = self.run.progress.step
            self.saver.postpone(step)
            self.run.display.say(f"the state of step {step} could not be saved: {error}")
        self.log.restart_clock()

    def stop(self) -> NoReturn:
        """Save the state, wait until it is on disk, and end the run; every rank calls it.

        Raises:
            Stopped: always, unless the state could not be saved.
            UserError: the last steps could not be saved.
        """
        self.save()
        step = self.run.progress.step
        stopped = self.control.stopped(on_all_ranks=True)
        self.saver.wait()
        if self.saver.durable_step not in (None, step):
            raise UserError(
                f"the steps after step {self.saver.durable_step} could not be saved",
                remedy="free some disk space, and run the command again",
            )
        again = "the same command without --fresh" if self.run.config.fresh else "the same command"
        self.run.display.say(f"{stopped}: saved after step {step}; {again} resumes from there")
        self.saver.close()
        self.log.finish()
        raise stopped
