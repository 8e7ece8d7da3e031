"""Hooks of the training loop, for everything that follows a run without being part of the recipe."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from crepe_dist.data.loader import Batch
from crepe_dist.runs.scores import Scores
from crepe_dist.training.step import Outcome


class Observer:
    """Something that follows a run. Every rank calls every method at the same point; each does nothing by default."""

    def begin_epoch(self) -> None:
        """Follow the start of an epoch, or of what is left of it after a resume."""

    def wait(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Wrap the batches of an epoch, to measure the time spent waiting for them."""
        return batches

    def before_step(self, batch: Batch) -> None:
        """Follow the start of a step."""

    def after_step(self, outcome: Outcome, learning_rate: float) -> None:
        """Follow the end of a step, which the run's progress counts already."""

    def end_epoch(self) -> None:
        """Follow the last step of an epoch, before the network is scored."""

    def begin_evaluation(self) -> None:
        """Follow the start of the scoring after an epoch."""

    def after_epoch(self, record: dict[str, Any], scores: dict[str, Scores]) -> None:
        """Follow the end of an epoch, whose checkpoint is written."""

    def finish(self) -> None:
        """Follow the end of the run."""


class Observers(Observer):
    """Several observers, called in order."""

    def __init__(self, observers: Iterable[Observer]) -> None:
        self._all = tuple(observers)

    def begin_epoch(self) -> None:
        for each in self._all:
            each.begin_epoch()

    def wait(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        for each in self._all:
            batches = each.wait(batches)
        return batches

    def before_step(self, batch: Batch) -> None:
        for each in self._all:
            each.before_step(batch)

    def after_step(self, outcome: Outcome, learning_rate: float) -> None:
        for each in self._all:
            each.after_step(outcome, learning_rate)

    def end_epoch(self) -> None:
        for each in self._all:
            each.end_epoch()

    def begin_evaluation(self) -> None:
        for each in self._all:
            each.begin_evaluation()

    def after_epoch(self, record: dict[str, Any], scores: dict[str, Scores]) -> None:
        for each in self._all:
            each.after_epoch(record, scores)

    def finish(self) -> None:
        for each in self._all:
            each.finish()
