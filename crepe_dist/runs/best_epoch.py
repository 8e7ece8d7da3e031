"""Best and reported epoch of a run, and early stopping."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any

from crepe_dist.data.dataset import Dataset
from crepe_dist.data.targets import SEVERAL
from crepe_dist.runs.state import Progress
from crepe_dist.settings.config import Config
from crepe_dist.wording import measure


@dataclass(frozen=True)
class EpochChoice:
    """Choice by validation accuracy and, where that hardly differs, by validation loss.

    A small split often cannot tell two epochs apart by accuracy: differences of less than its standard error are
    chance (as in the one-standard-error rule of Breiman et al., "Classification and Regression Trees", 1984). The loss
    says more about them. The test split decides nothing that is reported.

    Args:
        has_validation: true if the data have a validation split; without one the last epoch is reported.
        rows: number of documents of the validation split, or of the test split without one.
        patience: epochs without improvement after which the run stops; 0: never.
        epochs: number of epochs of the run, ``training.epochs``.
        keep_last: number of latest checkpoints to keep besides the best one.
        measure: what the accuracy in the records is: ``accuracy`` or ``micro F1``.
    """

    has_validation: bool
    rows: int
    patience: int
    epochs: int
    keep_last: int
    measure: str = "accuracy"

    @classmethod
    def of(cls, config: Config, data: Dataset) -> EpochChoice:
        """Make the choice for a configuration and its data."""
        training, has_validation = config.training, "validation" in data.parts
        rows = len(data.parts["validation" if has_validation else "test"])
        named = measure(data.labelled == SEVERAL)
        return cls(has_validation, rows, training.patience, training.all_epochs, config.checkpoint.keep_last, named)

    @property
    def chosen_by(self) -> str:
        return f"validation {self.measure}" if self.has_validation else "last epoch"

    def best(self, progress: Progress) -> dict[str, Any]:
        """Return the record of the best epoch.

        An epoch is better than an earlier one if its accuracy on the validation split (without one: on the test split)
        is higher by more than one standard error, or if its loss is lower and its accuracy is not lower by more.
        """
        split = "validation" if self.has_validation else "test"

        def accuracy(record: dict[str, Any]) -> float:
            return float(record.get(f"{split}_accuracy", 0.0))

        def loss(record: dict[str, Any]) -> float:
            value = record.get(f"{split}_loss", math.inf)
            return float(value) if math.isfinite(value) else math.inf

        def better(best: dict[str, Any], record: dict[str, Any]) -> dict[str, Any]:
            expected, gain = accuracy(best), accuracy(record) - accuracy(best)
            if abs(gain) > math.sqrt(expected * (1 - expected) / max(1, self.rows)):
                return record if gain > 0 else best
            return record if (-loss(record), gain) > (-loss(best), 0) else best

        # In the order of the epochs, so that a later one never makes an earlier one best whose checkpoint is deleted.
        return functools.reduce(better, progress.epochs)

    def reported(self, progress: Progress) -> dict[str, Any]:
        """Return the record of the epoch that the result reports."""
        return self.best(progress) if self.has_validation else progress.epochs[-1]

    def kept(self, progress: Progress) -> set[str]:
        """Return the names of the checkpoints to keep."""
        return {record["checkpoint"] for record in [*progress.epochs[-self.keep_last :], self.best(progress)]}

    def is_last(self, progress: Progress) -> bool:
        """Return whether the run ends with the newest epoch."""
        return progress.epoch + 1 >= self.epochs or self._is_out_of_patience(progress)

    def stopped_early(self, progress: Progress) -> str | None:
        """Describe an early stop, if there was one."""
        if not self._is_out_of_patience(progress) or progress.epoch + 1 >= self.epochs:
            return None
        return (
            f"stopped early: no better than epoch {self.best(progress)['epoch']} for {self.patience} epochs "
            f"(--training.patience); {self.epochs - 1 - progress.epoch} epochs are skipped"
        )

    def _is_out_of_patience(self, progress: Progress) -> bool:
        epochs = progress.epochs
        return 0 < self.patience <= len(epochs) - 1 - epochs.index(self.best(progress))
