"""Callbacks of the training loop: the interface, the list that calls them in order, and the watchdog's callback."""

from functools import partial
from typing import Any

import numpy as np

from crepe_dist.data.batch import Batch, RowIndices
from crepe_dist.distributed.signals import StepAction
from crepe_dist.distributed.watchdog import MAX_SHOWN_ROWS
from crepe_dist.parallel.distributed_optimizer import StepResult
from crepe_dist.training.context import TrainContext
from crepe_dist.training.display import Throughput


class Callback:
    """Base class of the callbacks. Its methods do nothing. Their names follow ``transformers.TrainerCallback``.

    Every rank has the same callbacks, and the training loop calls each method on every rank at the same point. A method
    may therefore contain collectives.
    """

    def on_epoch_begin(self) -> None:
        """Handle the start of an epoch. In a resumed run, the first epoch may start in the middle."""

    def on_step_begin(self, batch: Batch) -> StepAction:
        """Handle the start of a step, before the forward pass.

        Returns:
            The action that this rank requests after the step. The ranks follow the strongest request of any rank.
        """
        return StepAction.CONTINUE

    def on_step_end(self, result: StepResult, learning_rate: float) -> None:
        """Handle the end of a step. The progress of the run already includes this step.

        Args:
            result: Sums over all ranks for this step. ``result.requested_action`` is the action that the ranks have
                agreed on.
        """

    def on_log(self, throughput: Throughput) -> None:
        """Handle the throughput of the steps since the last call. ``StepLogger`` calls this method every ten steps."""

    def on_save(self) -> None:
        """Prepare for the capture of the state. ``SaveCallback`` calls this method."""

    def on_train_epoch_end(self) -> None:
        """Handle the end of an epoch's training steps, before the evaluation."""

    def on_epoch_end(self, record: dict[str, Any]) -> None:
        """Handle the end of an epoch, after its checkpoint has been written.

        Args:
            record: Metrics of the epoch (``checkpoint.epoch_record``).
        """

    def on_stop(self) -> None:
        """Handle a request to stop.

        ``SaveCallback`` saves the state and raises ``StopRequested``.
        """

    def on_train_end(self) -> None:
        """Handle the end of the last epoch."""


class CallbackList(Callback):
    """List of callbacks. Each method calls the same method on every callback, in the order of the list.

    ``on_step_begin`` returns the strongest action that a callback requests.
    """

    def __init__(self) -> None:
        self.callbacks: list[Callback] = []
        for name in (name for name in vars(Callback) if name.startswith("on_")):
            setattr(self, name, partial(self._call, name))

    def _call(self, name: str, *arguments: Any) -> StepAction:
        actions = [getattr(callback, name)(*arguments) for callback in self.callbacks]
        return max(filter(None, actions), default=StepAction.CONTINUE)


class WatchdogCallback(Callback):
    """Callback that sends heartbeats for steps and saves, and gives the watchdog the position to report on a hang."""

    def __init__(self, context: TrainContext) -> None:
        self._progress = context.progress
        self._watchdog = context.job.watchdog
        self._rows: RowIndices = np.zeros(0, np.int64)  # Rows of the current batch.
        self._watchdog.position_source = self._position

    def _position(self) -> dict[str, Any]:
        progress, rows = self._progress, self._rows[:MAX_SHOWN_ROWS].tolist()
        return {"step": progress.step, "epoch": progress.epoch, "documents": progress.documents, "rows": rows}

    def on_step_begin(self, batch: Batch) -> StepAction:
        self._watchdog.heartbeat("train")
        self._rows = batch.rows
        return StepAction.CONTINUE

    def on_save(self) -> None:
        self._watchdog.heartbeat("save")
