"""Saves of the state during training, stops on request, and the comparison of the replicas."""

from __future__ import annotations

from typing import Any

from crepe_dist.data.batch import Batch
from crepe_dist.distributed.signals import Vote
from crepe_dist.errors import UserError
from crepe_dist.parallel.distributed_optimizer import Outcome
from crepe_dist.training.callbacks import Callback
from crepe_dist.training.context import TrainContext
from crepe_dist.training.divergence import check_replicas
from crepe_dist.training.state_saver import StateSaver, snapshot


class SaveCallback(Callback):
    """Callback that saves the state or stops, as the ranks have agreed.

    It compares the replicas before each save and after each epoch, so that no state of diverged replicas is saved.

    Args:
        saver: Writer of the state. Only the saver of rank 0 writes.
        listeners: Callback whose ``on_save`` prepares for the capture of the state.
    """

    def __init__(self, context: TrainContext, saver: StateSaver, listeners: Callback) -> None:
        self._context = context
        self._saver = saver
        self._listeners = listeners
        self._control = context.job.control

    def on_step_begin(self, batch: Batch) -> Vote:
        return max(self._control.vote, Vote.SAVE if self._saver.due(batch.step) else Vote.GO_ON)

    def on_step_end(self, result: Outcome, learning_rate: float) -> None:
        """Save or stop.

        Raises:
            Stopped: A rank was asked to stop, and the state is saved.
        """
        if result.vote is Vote.STOP:
            self.on_stop()
        elif result.vote is Vote.SAVE:
            self._save()

    def on_epoch_end(self, record: dict[str, Any]) -> None:
        """Save if rank 0 wants to, and compare the replicas in any case."""
        context, progress = self._context, self._context.progress
        should_save = not progress.finished and self._saver.due(progress.step)
        if context.world.broadcast(should_save, "save after epoch"):
            self._save()
        else:
            check_replicas(context.engine.values(), context.world)

    def on_stop(self) -> None:
        """Save the state, wait until it is on disk, and end the run.

        Raises:
            Stopped: The state is saved.
            UserError: The last steps could not be saved.
        """
        self._save()
        context, step = self._context, self._context.progress.step
        stopped = self._control.stopped(on_all_ranks=True)
        self._saver.wait()
        if self._saver.durable_step not in (None, step):
            raise UserError(
                f"the steps after step {self._saver.durable_step} could not be saved",
                remedy="free some disk space, and run the command again",
            )
        command = "the same command without --fresh" if context.config.fresh else "the same command"
        context.display.say(f"{stopped}: saved after step {step}; {command} resumes from there")
        self._saver.close()
        raise stopped

    def on_train_end(self) -> None:
        self._saver.close()

    def _save(self) -> None:
        """Capture the state, and start to write it on rank 0."""
        context = self._context
        self._listeners.on_save()
        check_replicas(context.engine.values(), context.world)
        captured = snapshot(context)
        try:
            # A resumed run continues the metrics of its state, so the metrics are written before the state.
            context.metrics.sync()
            if captured:
                self._saver.save(captured)
        except OSError as error:
            self._saver.postpone(context.progress.step)
            context.display.say(f"the state of step {context.progress.step} could not be saved: {error}")
