"""Logging of the steps: losses, learning rates and throughput, for the metrics files and the progress display."""

import time
from collections.abc import Sequence
from typing import Any

from crepe_dist.data.batch import Batch
from crepe_dist.distributed.signals import StepAction
from crepe_dist.formatting import duration, pluralize
from crepe_dist.parallel.distributed_optimizer import StepResult
from crepe_dist.training.callbacks import Callback
from crepe_dist.training.context import TrainContext
from crepe_dist.training.display import Throughput, epoch_line

LOG_INTERVAL = 10  # Maximum number of steps between two calls of ``on_log``.
LOG_SECONDS = 2.0  # If a step ends more than this time after the last call, ``on_log`` is called at once.
# Number of the ``on_log`` call whose throughput is used to estimate the remaining time. Earlier steps are slower than
# later steps, because the caches are not filled yet.
ESTIMATED_AT = 6


class StepLogger(Callback):
    """Callback that measures the throughput, writes the metrics, and calls ``on_log`` every few steps.

    The clock runs only during training steps. It is paused during evaluation and while a state is captured.

    Args:
        listeners: Callbacks whose ``on_log`` receives the records.
    """

    def __init__(self, context: TrainContext, listeners: Callback) -> None:
        self._context = context
        self._progress = context.progress
        self._metrics = context.metrics
        self._display = context.display
        self._listeners = listeners
        self._unlogged: list[tuple[StepResult, float]] = []  # Results and learning rates of steps.
        self._wait_seconds = 0.0  # Time this rank has waited for data since the last ``on_log``.
        self._last_log: float | None = None  # Time of the last log; ``None`` while the clock is paused.
        self._step_end = 0.0
        self._has_logged = False

    def on_epoch_begin(self) -> None:
        self._restart_clock()

    def on_step_begin(self, batch: Batch) -> StepAction:
        if self._last_log is None:  # A state was saved after the previous step.
            self._restart_clock()
        self._wait_seconds += time.monotonic() - self._step_end
        return StepAction.CONTINUE

    def on_step_end(self, result: StepResult, learning_rate: float) -> None:
        if result.is_finite:
            self._unlogged.append((result, learning_rate))
        # The first step includes compilation time. It is logged separately, so that it does not distort the throughput.
        is_due = self._last_log is not None and time.monotonic() - self._last_log > LOG_SECONDS
        if result.step % LOG_INTERVAL == 0 or is_due or not self._has_logged:
            self._log()
            self._has_logged = True
        self._step_end = time.monotonic()

    def on_save(self) -> None:
        self._log()
        self._last_log = None

    def on_train_epoch_end(self) -> None:
        self._log()
        self._last_log = None

    def on_epoch_end(self, record: dict[str, Any]) -> None:
        self._metrics.log("epoch", [record])
        for tracker in self._context.job.trackers:
            tracker.log(self._context.run_dir, record)

    def on_train_end(self) -> None:
        try:
            self._metrics.sync()
        except OSError as error:
            self._display.print(f"the last lines of the metrics could not be written: {error}")

    def _log(self) -> None:
        """Log the steps since the last call. Do nothing while the clock is paused."""
        if self._last_log is None:
            return
        seconds = time.monotonic() - self._last_log
        self._progress.seconds += seconds
        if self._unlogged:
            throughput = Throughput(
                documents_per_second=sum(step.global_batch_size for step, _ in self._unlogged) / seconds,
                ms_per_step=1000 * seconds / len(self._unlogged),
                data_wait_fraction=min(1.0, self._wait_seconds / seconds),
            )
            records = [self._record(*step, throughput) for step in self._unlogged]
            self._metrics.log("step", records)
            self._listeners.on_log(records, throughput)
            self._unlogged = []
        self._restart_clock()

    def _restart_clock(self) -> None:
        self._wait_seconds = 0.0
        self._last_log = self._step_end = time.monotonic()

    def _record(self, result: StepResult, learning_rate: float, throughput: Throughput) -> dict[str, Any]:
        return {
            "step": result.step,
            "epoch": self._progress.epoch,
            "loss": result.loss / result.global_batch_size,
            "learning_rate": learning_rate,
            "documents_per_second": throughput.documents_per_second,
            "milliseconds": throughput.ms_per_step,
            "wait_fraction": throughput.data_wait_fraction,
        }


class ProgressCallback(Callback):
    """Callback that displays the progress, the estimated remaining time and the scores of each epoch."""

    def __init__(self, context: TrainContext) -> None:
        self._context = context
        self._display = context.display
        self._num_epochs = context.config.training.num_epochs
        self._num_rows = len(context.data.splits["train"])
        self._num_logs = 0

    def on_epoch_begin(self) -> None:
        progress = self._context.progress
        self._display.begin_epoch(progress.epoch, self._num_epochs, self._num_rows, progress.documents)

    def on_log(self, records: Sequence[dict[str, Any]], throughput: Throughput) -> None:
        progress = self._context.progress
        self._num_logs += 1
        if self._num_logs == ESTIMATED_AT:
            self._show_estimate(throughput)
        self._display.update(progress.documents, progress.smoothed_loss or 0.0, throughput)

    def on_train_epoch_end(self) -> None:
        self._display.end_epoch()

    def on_epoch_end(self, record: dict[str, Any]) -> None:
        self._display.log(
            epoch_line(record, self._num_epochs, self._context.selection.describe_latest(self._context.progress))
        )

    def _show_estimate(self, throughput: Throughput) -> None:
        """Print the estimated remaining time of the run at this throughput."""
        progress = self._context.progress
        remaining = (self._num_epochs + 1 - progress.epoch) * self._num_rows - progress.documents
        seconds = duration(remaining / throughput.documents_per_second)
        documents = pluralize(remaining, "document")
        # Later, larger batches are faster. Early stopping may also shorten the run.
        self._display.print(f"time      at most about {seconds} without evaluation: {documents} left, {throughput}")
