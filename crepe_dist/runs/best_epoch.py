"""Best and reported epoch of a run, and early stopping."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from crepe_dist.data.dataset import Dataset
from crepe_dist.runs.state import Progress
from crepe_dist.settings.config import Config


@dataclass(frozen=True)
class EpochChoice:
    """Choice by validation accuracy, among equals by validation loss; the test split decides nothing that is reported.

    Args:
        has_validation: true if the data have a validation split; without one the last epoch is reported.
        patience: epochs without improvement after which the run stops; 0: never.
        epochs: number of epochs of the run, ``training.epochs``.
        keep_last: number of latest checkpoints to keep besides the best one.
    """

    has_validation: bool
    patience: int
    epochs: int
    keep_last: int

    @classmethod
    def of(cls, config: Config, data: Dataset) -> EpochChoice:
        """Make the choice for a configuration and its data."""
        training = config.training
        return cls("validation" in data.parts, training.patience, training.all_epochs, config.checkpoint.keep_last)

    @property
    def chosen_by(self) -> str:
        return "validation accuracy" if self.has_validation else "last epoch"

    def best(self, progress: Progress) -> dict[str, Any]:
        """Return the record with the highest validation accuracy, or test accuracy without a validation split.

        Among equals the lowest loss on the same split decides, then the earliest epoch.
        """
        split = "validation" if self.has_validation else "test"

        def rank(record: dict[str, Any]) -> tuple[float, float]:
            loss = record.get(f"{split}_loss", math.inf)
            return record.get(f"{split}_accuracy", -math.inf), -loss if math.isfinite(loss) else -math.inf

        return max(progress.epochs, key=rank)

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
