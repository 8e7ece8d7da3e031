"""Record of the steps: losses and speed, for the metrics file, the display and the warning about a loss at chance."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from crepe_dist.data.batch import Batch
from crepe_dist.formatting import counted, duration
from crepe_dist.model.network_config import steps_per_epoch
from crepe_dist.parallel.distributed_optimizer import Outcome
from crepe_dist.training.context import Run
from crepe_dist.training.display import Speed, epoch_line
from crepe_dist.training.startup_messages import NotLearning

EVERY = 10  # steps


class StepLog:
    """Record that is written and shown every ``EVERY`` steps, with their mean speed."""

    def __init__(self, run: Run) -> None:
        self._epochs = run.config.training.all_epochs
        self._choice = run.choice
        self._patient = bool(run.config.training.patience)
        self._rows = len(run.data.splits["train"])
        self._steps = steps_per_epoch(self._rows, run.config.data.batch_size)
        self._progress = run.progress
        self._metrics = run.metrics
        self._display = run.display
        chance = run.engine.objective.chance_loss(run.data.splits["train"].targets.mass(), self._rows)
        self._not_learning = NotLearning(chance, run.config)
        self._unrecorded: list[tuple[Outcome, float]] = []  # steps, with their learning rates
        self._waited = 0.0
        self._since = time.monotonic()
        self._training = False  # between epochs, scoring takes the time
        self._compiled = False  # the first step compiles; it is recorded alone, so that it distorts no rate
        self._records_to_estimate = 6  # the first ones fill caches

    def begin_epoch(self) -> None:
        """Handle the start of an epoch, or of the rest of it after a resume."""
        self._display.begin_epoch(self._progress.epoch, self._epochs, self._rows, self._progress.documents)
        self.restart_clock()
        self._training = True

    def wait(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Yield batches, and measure the wait for them."""
        while True:
            requested = time.monotonic()
            try:
                batch = next(batches)
            except StopIteration:
                return
            self._waited += time.monotonic() - requested
            yield batch
            del batch  # freeing it must not count as waiting

    def after_step(self, outcome: Outcome, learning_rate: float) -> None:
        """Record a step, which the run's progress already counts."""
        if outcome.finite:
            self._unrecorded.append((outcome, learning_rate))
        if outcome.step % EVERY == 0 or not self._compiled:
            self.flush()
            self._compiled = True

    def end_epoch(self) -> None:
        """Handle the end of an epoch's steps, before the network is scored."""
        self.flush()
        self._training = False
        self._display.end_epoch()

    def after_epoch(self, record: dict[str, Any]) -> None:
        """Record an epoch and its scores."""
        self._metrics.epoch(record)
        self._display.say(epoch_line(record, self._epochs, self._choice.verdict(self._progress)))

    def finish(self) -> None:
        """Warn at the end of a run that was too short for an earlier warning, and write the last lines."""
        if warning := self._not_learning.end(self._progress.step):
            self._display.say(warning)
        self.sync()

    def sync(self) -> None:
        """Write the last lines."""
        try:
            self._metrics.sync()
        except OSError as error:
            self._display.say(f"the last lines of the metrics could not be written: {error}")

    def flush(self) -> None:
        """Record and show the steps since the last record."""
        seconds = time.monotonic() - self._since
        if self._training:
            self._progress.seconds += seconds
        if self._unrecorded:
            documents = sum(step.documents for step, _ in self._unrecorded)
            speed = Speed(
                documents=documents / seconds,
                milliseconds=1000 * seconds / len(self._unrecorded),
                waited=min(1.0, self._waited / seconds),
            )
            self._metrics.steps([self._record(*step, speed) for step in self._unrecorded])
            for step, _ in self._unrecorded:
                if news := self._not_learning.look(step.step, step.loss / step.documents):
                    self._display.say(news)
            self._records_to_estimate -= 1
            if self._records_to_estimate == 0:
                self._estimate(speed)
            self._display.update(self._progress.documents, self._progress.moving_loss or 0.0, speed)
            self._unrecorded = []
        self.restart_clock()

    def _estimate(self, speed: Speed) -> None:
        """Print how long the rest of the run takes at this speed."""
        left = self._epochs * self._steps - self._progress.step
        seconds = duration(left * speed.milliseconds / 1000)
        self._display.say(
            f"time      {'at most ' * self._patient}about {seconds} besides scoring: "
            f"{counted(left, 'step')} left, {speed.milliseconds:,.1f} ms each "
            f"({counted(self._epochs, 'epoch')} of {counted(self._steps, 'step')})"
        )

    def restart_clock(self) -> None:
        """Exclude the time since the last record from the speed."""
        self._waited = 0.0
        self._since = time.monotonic()

    def _record(self, outcome: Outcome, learning_rate: float, speed: Speed) -> dict[str, Any]:
        return {
            "step": outcome.step,
            "epoch": self._progress.epoch,
            "loss": outcome.loss / outcome.documents,
            "learning_rate": learning_rate,
            "documents_per_second": speed.documents,
            "milliseconds": speed.milliseconds,
            "wait_fraction": speed.waited,
        }
