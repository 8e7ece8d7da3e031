"""Scores of several labels per document on one split, and the choice of the classes' thresholds.

All counts are integers that are summed over the ranks, so the scores do not depend on the number of ranks. Log-odds are
counted in intervals of 1 / ``PER_UNIT``: average precision treats documents in the same interval as equal.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from crepe_dist.files import finite, integer
from crepe_dist.runs.scores import BINS, ClassScores, Counts, Floats, bits, counts, mean, packed

if TYPE_CHECKING:
    import pandas as pd

TOPS = (1, 3, 5)  # k of precision at k
HIGHEST, PER_UNIT = 8, 32  # log-odds that are told apart, and intervals per unit
INTERVALS = 2 * HIGHEST * PER_UNIT
PRIOR = 4  # documents with a label that the threshold of all labels together counts as
DEFAULT_THRESHOLD = 0.5


def intervals(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.int64]:
    """Return the interval of each log-odds, int64, 0 to ``INTERVALS`` - 1; those of a network that diverged are 0."""
    scaled = np.nan_to_num((np.clip(logits, -HIGHEST, HIGHEST) + HIGHEST) * PER_UNIT)
    return np.minimum(scaled.astype(np.int64), INTERVALS - 1)


def threshold_of(interval: npt.NDArray[Any]) -> Floats:
    """Return the probability at the lower end of an interval."""
    return np.asarray(1 / (1 + np.exp(HIGHEST - np.asarray(interval, np.float64) / PER_UNIT)))


def log_odds(thresholds: Floats) -> npt.NDArray[np.float32]:
    """Return the log-odds from which a class is predicted, float32 [classes]."""
    return np.log(thresholds / (1 - thresholds)).astype(np.float32)


def choose_thresholds(histogram: Counts) -> Floats:
    """Choose each class's threshold by F1, the middle one among equals.

    Few documents say little about a threshold. The log-odds of a class with n documents are the mean, with weights n
    and ``PRIOR``, of its own best threshold and of that of all labels together.

    Args:
        histogram: int64 [classes, ``INTERVALS``, 2]: documents without and with the label in each interval.

    Returns:
        Probabilities, float64 [classes].
    """
    group_size, number = _best(histogram.sum(axis=0)[None]), histogram[..., 1].sum(axis=1)
    return threshold_of(np.rint((number * _best(histogram) + PRIOR * group_size) / (number + PRIOR)))


def _best(histogram: Counts) -> npt.NDArray[np.int64]:
    """Return the interval from which predicting a class gives the highest F1, int64 [classes]."""
    above = histogram[:, ::-1].cumsum(axis=1)[:, ::-1]  # documents at or above each interval
    positive = histogram[..., 1].sum(axis=1, keepdims=True)
    f1 = 2 * above[..., 1] / np.maximum(above.sum(axis=2) + positive, 1)
    f1[:, 0] = -1  # a threshold below all
    first = f1.argmax(axis=1)
    last = INTERVALS - 1 - f1[:, ::-1].argmax(axis=1)
    middle = (first + last) // 2
    rows = np.arange(len(f1))
    is_equal = f1[rows, middle] == f1[rows, first]
    return np.asarray(np.where(is_equal, middle, first))


def decided(histogram: Counts, thresholds: Floats) -> Counts:
    """Count documents with the label and predicted, only predicted, and only with the label, int64 [classes, 3]."""
    lowest = intervals(log_odds(thresholds) + np.float32(1e-4))
    above = np.arange(INTERVALS) >= lowest[:, None]
    without, with_label = (np.where(above, histogram[..., n], 0).sum(axis=1) for n in (0, 1))
    return np.stack([with_label, without, histogram[..., 1].sum(axis=1) - with_label], axis=1)


def average_precision(histogram: Counts) -> Floats:
    """Return the average precision of each class, float64 [classes]; 0 for a class without documents."""
    above = histogram[:, ::-1].cumsum(axis=1)
    precision = above[..., 1] / np.maximum(above.sum(axis=2), 1)
    gained = histogram[:, ::-1, 1]
    return np.asarray((precision * gained).sum(axis=1) / np.maximum(gained.sum(axis=1), 1))


@dataclass(frozen=True)
class LabelScores(ClassScores):
    """Scores of several labels on one split.

    Attributes:
        loss: mean over the documents of the sum of the binary cross-entropies, in nats.
        decisions: documents with the label and predicted, only predicted, and only with the label, int64 [classes, 3].
        average_precision: float64 [classes].
        hits: for each k of ``TOPS``, how many of the k most probable classes of all documents are labels, int64.
        thresholds: probability from which a class is predicted, float64 [classes].
        reliability: int64 [BINS, 3]; for each interval of the probability of a class of a document, their number, how
            many are labels, and the sum of the probabilities in millionths.
        right: bool [documents]: all labels of the document are predicted and no other; ``None`` if not stored.
    """

    documents: int
    loss: float
    decisions: Counts
    average_precision: Floats
    hits: Counts
    thresholds: Floats
    reliability: Counts
    right: npt.NDArray[np.bool_] | None = None

    def _decisions(self) -> Counts:
        return self.decisions

    @property
    def accuracy(self) -> float:
        """Micro F1: the score that names checkpoints and chooses epochs."""
        right, false, missed = self.decisions.sum(axis=0).tolist()
        return float(2 * right / max(2 * right + false + missed, 1))

    @property
    def micro(self) -> tuple[float, float]:
        """Precision and recall over all labels together."""
        right, false, missed = self.decisions.sum(axis=0).tolist()
        return right / max(right + false, 1), right / max(right + missed, 1)

    @property
    def mean_average_precision(self) -> float:
        """Unweighted mean of the average precision over the classes that have documents."""
        return mean(self.average_precision[self.tested])

    @property
    def precision_at(self) -> dict[int, float]:
        """Share of labels among the k most probable classes, by k."""
        return {k: float(hits / (k * self.documents)) for k, hits in zip(TOPS, self.hits) if k <= len(self.decisions)}

    @property
    def exact(self) -> float | None:
        """Share of documents whose labels are all predicted, and no other; ``None`` if unknown."""
        return None if self.right is None else float(self.right.mean())

    def per_class(self, classes: list[str]) -> pd.DataFrame:
        """Return the columns of ``ClassScores``, average_precision and threshold (fractions), one row per class."""
        table = super().per_class(classes)
        table.insert(3, "average_precision", self.average_precision)
        table.insert(4, "threshold", self.thresholds)
        return table

    def summary(self) -> dict[str, Any]:
        """Return the scores over all classes as JSON values."""
        precision, recall = self.micro
        return {
            "micro_f1": self.accuracy,
            "micro_precision": precision,
            "micro_recall": recall,
            "macro_f1": self.macro_f1,
            "mean_average_precision": self.mean_average_precision,
            **{f"precision_at_{k}": value for k, value in self.precision_at.items()},
            "exact_match": self.exact,
            "loss": self.loss,
            "calibration_error": self.calibration_error,
            "documents": self.documents,
        }

    def to_dict(self) -> dict[str, Any]:
        """Convert to JSON values."""
        return {
            "documents": self.documents,
            "loss": self.loss,
            "decisions": self.decisions.tolist(),
            "average_precision": self.average_precision.tolist(),
            "hits": self.hits.tolist(),
            "thresholds": self.thresholds.tolist(),
            "reliability": self.reliability.tolist(),
            "right": packed(self.right),
        }

    @classmethod
    def of(cls, saved: Any, classes: int) -> LabelScores:
        """Convert from the values of ``to_dict``."""
        documents = integer(saved["documents"], 1, name="documents")
        return cls(
            documents,
            finite(saved["loss"], name="loss"),
            counts(saved["decisions"], (classes, 3)),
            _fractions(saved["average_precision"], classes),
            counts(saved["hits"], (len(TOPS),)),
            checked_thresholds(saved["thresholds"], classes),
            counts(saved["reliability"], (BINS, 3)),
            bits(saved["right"], documents),
        )


def checked_thresholds(saved: Any, classes: int) -> Floats:
    """Convert thresholds from JSON."""
    thresholds = _fractions(saved, classes)
    if not ((thresholds > 0) & (thresholds < 1)).all():
        raise ValueError("the thresholds are not between 0 and 1")
    return thresholds


def _fractions(saved: Any, classes: int) -> Floats:
    if len(saved) != classes:
        raise ValueError(f"there are {len(saved)} numbers for {classes} classes")
    return np.array([finite(value, 0, 1) for value in saved])
