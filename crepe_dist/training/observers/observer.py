"""Hooks of the training loop for everything that is not part of the recipe."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from crepe_dist.data.batch import Batch
from crepe_dist.runs.checkpoint import AnyScores
from crepe_dist.training.step import Outcome


class Observer:
    """Observer of a run. Every rank calls each method at the same point; by default they do nothing."""

    def begin_epoch(self) -> None:
        """Handle the start of an epoch, or of the rest of it after a resume."""

    def wait(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Wrap the batches of an epoch, for instance to measure the wait for them."""
        return batches

    def before_step(self, batch: Batch) -> None:
        """Handle the start of a step."""

    def after_step(self, outcome: Outcome, learning_rate: float) -> None:
        """Handle the end of a step, which the run's progress already counts."""

    def end_epoch(self) -> None:
        """Handle the end of an epoch's steps, before the network is scored."""

    def begin_evaluation(self) -> None:
        """Handle the start of the evaluation after an epoch."""

    def after_epoch(self, record: dict[str, Any], scores: Mapping[str, AnyScores]) -> None:
        """Handle the end of an epoch, after its checkpoint was written."""

    def finish(self) -> None:
        """Handle the end of the run."""


class Observers(Observer):
    """Several observers, called in order."""

    def __init__(self, observers: Iterable[Observer]) -> None:
        self._all = tuple(observers)

    def begin_epoch(self) -> None:
        for observer in self._all:
            observer.begin_epoch()

    def wait(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        for observer in self._all:
            batches = observer.wait(batches)
        return batches

    def before_step(self, batch: Batch) -> None:
        for observer in self._all:
            observer.before_step(batch)

    def after_step(self, outcome: Outcome, learning_rate: float) -> None:
        for observer in self._all:
            observer.after_step(outcome, learning_rate)

    def end_epoch(self) -> None:
        for observer in self._all:
            observer.end_epoch()

    def begin_evaluation(self) -> None:
        for observer in self._all:
            observer.begin_evaluation()

    def after_epoch(self, record: dict[str, Any], scores: Mapping[str, AnyScores]) -> None:
        for observer in self._all:
            observer.after_epoch(record, scores)

    def finish(self) -> None:
        for observer in self._all:
            observer.finish()
