"""Model selection: the best epoch and the reported epoch of a run, early stopping, and the checkpoints to keep."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from crepe_dist.data.dataset import Dataset
from crepe_dist.runs.metrics import loss_of
from crepe_dist.runs.resume_state import TrainerState
from crepe_dist.settings.config import Config

# Two losses are considered equal if they differ by less than this fraction of the standard error of one loss. All
# epochs are evaluated on the same texts, so their losses are correlated: in measurements, the standard error of the
# difference between two losses was one third to one half of the standard error of one loss.
TOLERANCE = 1 / 3


@dataclass(frozen=True)
class ModelSelection:
    """Model selection by the validation score, and by the validation loss if two scores hardly differ.

    Two scores are considered equal if they differ by at most one standard error, as in the one-standard-error rule
    (Breiman et al., "Classification and Regression Trees", 1984). On a small split, this often applies to two epochs.
    The loss of the calibrated probabilities then decides. If the losses also hardly differ, the later epoch is
    selected, because the learning rate usually falls during training. The test split never selects the reported epoch.

    Args:
        has_validation: Whether there is a validation split, which selects the epoch. If there is no validation split,
            the last epoch is reported.
        num_rows: Number of documents in the validation split, or in the test split if there is no validation split.
        patience: The run stops after this number of epochs without improvement. If it is 0, the run never stops early.
        num_epochs: Number of epochs after which the run ends.
    """

    has_validation: bool
    num_rows: int
    patience: int
    num_epochs: int

    @classmethod
    def for_data(cls, config: Config, data: Dataset, num_epochs: int) -> "ModelSelection":
        """Create the model selection for a run of at most ``num_epochs`` epochs."""
        has_validation = "validation" in data.splits
        rows = len(data.splits.get("validation" if has_validation else "test", ()))
        return cls(has_validation, rows, config.training.patience or 0, num_epochs)

    @property
    def selected_by(self) -> str:
        return "validation split" if self.has_validation else "last epoch"

    @property
    def _split(self) -> str:
        return "validation" if self.has_validation else "test"

    def best_epoch(self, progress: TrainerState) -> dict[str, Any]:
        """Return the record of the best epoch.

        Epochs are compared on the validation split, or on the test split if there is no validation split. The first
        epoch is initially the best epoch. A later epoch becomes the best epoch in two cases:

        1. Its score is higher than the highest score by more than one standard error.
        2. Its score is at most one standard error lower than the highest score, and its loss is lower than the lowest
           loss plus the tolerance.

        The highest score is taken over all epochs that have been the best epoch so far. The lowest loss is taken over
        the same epochs, but starts anew in case 1.
        """
        best, *later_epochs = progress.epochs
        highest, lowest = best, self._loss(best)
        # The epochs are compared in chronological order. Otherwise, a later epoch could turn an earlier epoch into the
        # best one after the checkpoint of that earlier epoch has been deleted.
        for record in later_epochs:
            gain, error = self._score(record) - self._score(highest), self._standard_error(highest)
            loss = self._loss(record)
            if gain > error or (gain >= -error and (loss, -gain) < (lowest, 0)):
                best, lowest = record, loss
            elif gain >= -error and loss < lowest + self._tolerance(record):
                best = record
            else:
                continue
            highest = max(highest, record, key=self._score)
        return best

    def last_improvement(self, progress: TrainerState) -> dict[str, Any]:
        """Return the record of the last epoch that was a significant improvement.

        The first epoch is an improvement by definition. A later epoch is compared with the last improvement before it,
        and is an improvement in two cases:

        1. Its score is higher by more than one standard error.
        2. Its score is at most one standard error lower, and its loss is lower by more than the tolerance.
        """
        improved, *later_epochs = progress.epochs
        for record in later_epochs:
            gain, error = self._score(record) - self._score(improved), self._standard_error(improved)
            is_lower = self._loss(record) < self._loss(improved) - self._tolerance(record)
            if gain > error or (gain >= -error and is_lower):
                improved = record
        return improved

    def describe_latest(self, progress: TrainerState) -> str:
        """Compare the newest epoch with the earlier epochs, for a message. Return "" if an earlier epoch is better."""
        newest = progress.epochs[-1]
        if self.best_epoch(progress) is not newest:
            return ""
        is_better = self.last_improvement(progress) is newest
        return "the best so far" if is_better else "as good as the best so far, within chance"

    def _standard_error(self, record: dict[str, Any]) -> float:
        """Return the binomial standard error of the score in a record."""
        return math.sqrt(self._score(record) * (1 - self._score(record)) / max(1, self.num_rows))

    def _score(self, record: dict[str, Any]) -> float:
        return float(record.get(f"{self._split}_accuracy", 0.0))

    def _loss(self, record: dict[str, Any]) -> float:
        return loss_of(record, self._split)[0]

    def _tolerance(self, record: dict[str, Any]) -> float:
        return TOLERANCE * loss_of(record, self._split)[1]

    def selected_epoch(self, progress: TrainerState) -> dict[str, Any]:
        """Return the record of the epoch that the result reports."""
        return self.best_epoch(progress) if self.has_validation else progress.epochs[-1]

    def checkpoints_to_keep(self, progress: TrainerState, scored_epochs: Iterable[int]) -> set[str]:
        """Return the names of the checkpoints that an unfinished run needs.

        Args:
            scored_epochs: For each saved state, the number of epochs that had been scored when it was saved. A run that
                resumes from a state needs the checkpoint that was selected at that time.
        """
        epochs = progress.epochs
        counts = {len(epochs), *(count for count in scored_epochs if 0 < count < len(epochs))}
        positions = (replace(progress, epochs=epochs[:count]) for count in counts)
        return {record["checkpoint"] for record in [epochs[-1], *map(self.selected_epoch, positions)]}

    def is_last(self, progress: TrainerState) -> bool:
        """Return whether the run ends with the newest epoch."""
        return progress.epoch >= self.num_epochs or self._is_out_of_patience(progress)

    def stopped_early(self, progress: TrainerState) -> str | None:
        """Describe an early stop. Return ``None`` if the run has not stopped early."""
        if not self._is_out_of_patience(progress) or progress.epoch >= self.num_epochs:
            return None
        since = f"no improvement beyond chance since epoch {self.last_improvement(progress)['epoch']}"
        epochs = f"epoch {progress.epoch} of {self.num_epochs}"
        return f"stopped early, after {epochs}: {since} (--patience 0 trains all epochs)"

    def _is_out_of_patience(self, progress: TrainerState) -> bool:
        waited = len(progress.epochs) - 1 - progress.epochs.index(self.last_improvement(progress))
        return 0 < self.patience <= waited
