"""Callback that saves the state during training, stops on request, and checks that the replicas are equal."""

from typing import Any

from crepe_dist.data.batch import Batch
from crepe_dist.distributed.signals import StepAction
from crepe_dist.errors import UserError
from crepe_dist.parallel.distributed_optimizer import StepResult
from crepe_dist.training.callbacks import Callback
from crepe_dist.training.context import TrainContext
from crepe_dist.training.divergence import check_replicas
from crepe_dist.training.state_saver import BackgroundStateSaver, capture_state


class SaveCallback(Callback):
    """Callback that saves the state or stops, depending on the action that the ranks have agreed on.

    The callback checks before each save and after each epoch that all replicas are equal. A state is therefore never
    saved after the replicas have diverged.

    Args:
        saver: Writer of the state. Only the saver on rank 0 writes.
        listeners: Callbacks whose ``on_save`` is called before the state is captured.
    """

    def __init__(self, context: TrainContext, saver: BackgroundStateSaver, listeners: Callback) -> None:
        self._context = context
        self._saver = saver
        self._listeners = listeners
        self._control = context.job.signals

    def on_step_begin(self, batch: Batch) -> StepAction:
        return max(
            self._control.requested_action,
            StepAction.SAVE if self._saver.should_save(batch.step) else StepAction.CONTINUE,
        )

    def on_step_end(self, result: StepResult, learning_rate: float) -> None:
        """Save or stop if the ranks have agreed on it.

        Raises:
            StopRequested: A signal requested a stop on at least one rank. The state has been saved.
        """
        if result.requested_action is StepAction.STOP:
            self.on_stop()
        elif result.requested_action is StepAction.SAVE:
            self._save()

    def on_epoch_end(self, record: dict[str, Any]) -> None:
        """Save the state if a save is due on rank 0. In either case, check that the replicas are equal."""
        context, progress = self._context, self._context.progress
        should_save = not progress.finished and self._saver.should_save(progress.step)
        if context.group.broadcast_json(should_save, "save after epoch"):
            self._save()
        else:
            check_replicas(context.engine.state_dict(), context.group)

    def on_stop(self) -> None:
        """Save the state, wait until it is on disk, and end the run.

        Raises:
            StopRequested: The state has been saved.
            UserError: The state could not be written, so the newest state on disk is an earlier one.
        """
        self._save()
        context, step = self._context, self._context.progress.step
        stopped = self._control.stop_exception(on_all_ranks=True)
        self._saver.wait()
        if self._saver.last_saved_step not in (None, step):
            raise UserError(
                f"the steps after step {self._saver.last_saved_step} could not be saved",
                remedy="free some disk space, and run the command again",
            )
        command = "the same command without --fresh" if context.config.fresh else "the same command"
        context.display.log(f"{stopped}: saved after step {step}; {command} resumes from there")
        self._saver.close()
        raise stopped

    def on_train_end(self) -> None:
        self._saver.close()

    def _save(self) -> None:
        """Capture the state. On rank 0, start to write it in the background."""
        context = self._context
        self._listeners.on_save()
        check_replicas(context.engine.state_dict(), context.group)
        captured = capture_state(context)
        try:
            # A resumed run appends to the metrics files, starting after the step of its state. The files must contain
            # every step up to this state, so the metrics are written before the state.
            context.metrics.sync()
            if captured:
                self._saver.save(captured)
        except OSError as error:
            self._saver.skip(context.progress.step)
            context.display.log(f"the state of step {context.progress.step} could not be saved: {error}")
