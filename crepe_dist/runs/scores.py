"""Scores of a network on one split, with one class per document or several, and their JSON form.

Scores are integer counts summed over the ranks, so they do not depend on the number of ranks. The log-odds of several
labels are counted in intervals of 1 / ``PER_UNIT``: average precision treats documents in the same interval as equal.
"""

from __future__ import annotations

import base64
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from typing import Any, Union

import numpy as np
import numpy.typing as npt

from crepe_dist.data.label_hierarchy import nonzero_cells
from crepe_dist.model.calibration import (
    INTERVALS,
    PERCENTS,
    UNCALIBRATED,
    Calibration,
    interval_threshold,
    log_odds,
    reverse_cumsum,
    to_intervals,
)
from crepe_dist.sealed_json import rename_keys

BINS = 15  # intervals of the predicted probability, as in Guo et al. 2017
MILLION = 1_000_000  # probabilities are summed as integer millionths, so the order of additions does not matter
MAX_MISTAKES = 20  # kept per split
TOP_K_PER_MISTAKE = 3  # most probable classes kept per mistake
TOP_K = (3, 5)  # most probable classes among which the true one may be
MAX_STORED_CLASSES = 1000  # with more classes, no scores are stored: the confusion matrix would be too large
MAX_STORED_DOCUMENTS = 1 << 21  # with more documents, `right` is not stored
PRIOR_DOCUMENTS = 4  # documents with a label that the threshold of all labels together counts as
DEFAULT_THRESHOLD = 0.5
NOT_STORED = ("loss_error",)
# Keys of stored scores in earlier versions. ``evaluate --json`` still prints these keys.
FORMER_KEYS = {
    "answers": "confidence_histogram",
    "decisions": "confusion_counts",
    "right": "is_correct",
    "sure": "selective_counts",
}
Counts = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
EMPTY_CONFIDENCE_HISTOGRAM: Counts = np.zeros((PERCENTS, 2 + len(TOP_K)), np.int64)
EMPTY_SELECTIVE_COUNTS: Counts = np.zeros((0, 1, 2), np.int64)


@dataclass(frozen=True)
class Mistake:
    """A misclassified document.

    Attributes:
        row: number of the document in its split.
        true: index of the true class.
        probability: predicted probability of the true class, from 0 to 1.
        ranking: at most ``RANKED`` pairs (class, probability), the most probable first.
    """

    row: int
    true: int
    probability: float
    ranking: tuple[tuple[int, float], ...]

    @classmethod
    def from_dict(cls, saved: dict[str, Any]) -> Mistake:
        """Convert from the values of ``asdict``."""
        return cls(**{**saved, "ranking": tuple(map(tuple, saved["ranking"]))})


def worst_mistakes(mistakes: list[Mistake]) -> list[Mistake]:
    """Return the ``MISTAKES`` with the least probable true classes, in an order independent of the input's."""
    return sorted(mistakes, key=lambda mistake: (mistake.probability, mistake.row))[:MAX_MISTAKES]


class ClassificationScores:
    """Scores of each class, and their means, from the decisions about it."""

    confusion_counts: Counts  # true positives, false positives and false negatives, int64 [classes, 3]
    reliability: Counts
    calibration: Calibration
    selective_counts: Counts
    uncalibrated_loss: float | None = None
    is_multilabel = False

    @property
    def selective_scores(self) -> list[dict[str, Any]]:
        """Answers as sure as asked, as far as the validation split promises them, as JSON values.

        ``covered`` is the share of the texts that are answered with a node of each level, and with a class, or of the
        labels that are found. A threshold is ``None`` where nothing is sure enough.
        """
        found = []
        for (asked, thresholds), counts in zip(self.calibration.promised.items(), self.selective_counts):
            given, right = counts.T
            covered = (right if self.is_multilabel else given) / max(self.support.sum(), 1)
            least = [each if each <= 1 else None for each in thresholds]
            values = (asked, least, covered.tolist(), float(right.sum() / max(given.sum(), 1)))
            found.append(dict(zip(("asked", "thresholds", "covered", "precision"), values)))
        return found

    @property
    def macro_f1_error(self) -> float:
        """Standard error of the macro F1 (delta method), as if each mistake about two classes hit both alike."""
        right, *wrong = self.confusion_counts.T
        both, f1 = np.maximum(2 * right + sum(wrong), 1), self.f1
        squares = right * ((2 - 2 * f1) / both) ** 2 + 2 * sum(wrong) * (f1 / both) ** 2
        return float(np.sqrt(squares[self.has_support].sum()) / max(self.has_support.sum(), 1))

    @property
    def support(self) -> Counts:
        """Number of documents of each class, int64 [classes]."""
        return np.asarray(self.confusion_counts[:, ::2].sum(axis=1))

    @property
    def has_support(self) -> npt.NDArray[np.bool_]:
        """Tell which classes have documents, bool [classes]."""
        return np.asarray(self.support > 0)

    @property
    def is_predicted(self) -> npt.NDArray[np.bool_]:
        """Tell which classes were predicted, bool [classes]."""
        return np.asarray(self.confusion_counts[:, :2].any(axis=1))

    @property
    def precision(self) -> Floats:
        """Precision of each class, float64 [classes]; 0 for a class that is never predicted."""
        return np.asarray(self.confusion_counts[:, 0] / np.maximum(self.confusion_counts[:, :2].sum(axis=1), 1))

    @property
    def recall(self) -> Floats:
        """Recall of each class, float64 [classes]; 0 for a class without documents."""
        return np.asarray(self.confusion_counts[:, 0] / np.maximum(self.support, 1))

    @property
    def f1(self) -> Floats:
        """F1 score of each class, float64 [classes]; 0 where undefined."""
        return _f1(self.confusion_counts.T)

    @property
    def macro_f1(self) -> float:
        """Unweighted mean of F1 over the classes that have documents."""
        return float(self.f1[self.has_support].mean()) if self.has_support.any() else 0.0

    def metrics(self) -> dict[str, float]:
        """Return the metrics of an epoch's record, by name without the split."""
        names = ["loss", "accuracy", "macro_f1", "macro_f1_error", "calibration_error"]
        names += ["mean_average_precision"] * self.is_multilabel
        return {name: getattr(self, name) for name in names}

    @property
    def calibration_error(self) -> float:
        """Expected calibration error: of the predicted classes, or of all classes where there are several labels."""
        return expected_calibration_error(self.reliability)

    def per_class(self, classes: list[str]) -> dict[str, dict[str, Any]]:
        """Return precision, recall, f1 (fractions; 0 if undefined) and documents of each class, as JSON values.

        Several labels have average_precision and threshold (fractions), too.
        """
        names = ["precision", "recall", "f1", *["average_precision", "threshold"] * self.is_multilabel, "documents"]
        others = {"threshold": "thresholds", "documents": "support"}
        rows = zip(*(getattr(self, others.get(name, name)).tolist() for name in names))
        return {each: dict(zip(names, row)) for each, row in zip(classes, rows)}

    def to_dict(self, *omitted: str) -> dict[str, Any]:
        """Convert to JSON values, without the attributes ``omitted``."""
        names = [each.name for each in fields(self) if each.name not in (*NOT_STORED, *omitted)]  # type: ignore[arg-type]
        return {name: _plain(getattr(self, name)) for name in names}

    @classmethod
    def from_dict(cls, saved: dict[str, Any]) -> Any:
        """Convert from the values of ``to_dict``."""
        saved = rename_keys(saved, FORMER_KEYS)
        values = {name: np.array(value) if isinstance(value, list) else value for name, value in saved.items()}
        values["calibration"] = Calibration(**saved.get("calibration", {}))
        if "mistakes" in saved:
            values["mistakes"] = list(map(Mistake.from_dict, saved["mistakes"]))
        documents = saved["documents"] if cls.is_multilabel else int(values["confusion"].sum())
        return cls(**{**values, "is_correct": _bits(saved["is_correct"], documents)})


@dataclass(frozen=True)
class MulticlassScores(ClassificationScores):
    """Scores of a network on one split.

    Attributes:
        confusion: int64 [classes, classes]; row = true class, column = predicted class.
        loss: mean cross-entropy per document, in nats, of the probabilities that ``predict`` gives: calibrated by
            ``calibration``, or by the temperature that this split chose.
        reliability: int64 [BINS, 3]; for each interval of the predicted probability, the number of documents, that of
            correct predictions, and the sum of the probabilities in millionths.
        mistakes: worst mistakes, as selected by ``worst``.
        right: bool [documents], true for correct predictions, in the order of the split; ``None`` if not stored.
        calibration: calibration of the probabilities in ``reliability`` and ``mistakes``.
        uncalibrated: ``reliability`` at temperature 1; ``None`` if ``reliability`` is.
        uncalibrated_loss: mean cross-entropy at temperature 1; ``None`` in files of earlier versions, in which ``loss``
            has this value.
        loss_error: standard error of ``loss``; ``None`` for a split that chose no temperature. Not stored.
        answers: int64 [PERCENTS, 2 + RANKS]; for each whole percent of the predicted probability, rounded down, the
            number of documents, of correct predictions, and of documents whose true class is among the first ``RANKS``.
        sure: int64 [precisions, levels, 2]; for each precision that the calibration promises, the number of documents
            that are answered with a node of each level and with a class, and of those for which it is right.
    """

    confusion: Counts
    loss: float
    reliability: Counts
    mistakes: list[Mistake]
    is_correct: npt.NDArray[np.bool_] | None = None
    calibration: Calibration = UNCALIBRATED
    uncalibrated: Counts | None = None
    uncalibrated_loss: float | None = None
    loss_error: float | None = None
    confidence_histogram: Counts = field(default_factory=lambda: EMPTY_CONFIDENCE_HISTOGRAM)
    selective_counts: Counts = field(default_factory=lambda: EMPTY_SELECTIVE_COUNTS)

    @cached_property
    def confusion_cells(self) -> tuple[Counts, Counts, Counts]:
        """Non-zero cells of ``confusion``, see ``cells_of``."""
        return nonzero_cells(self.confusion)

    @property
    def documents(self) -> int:
        return int(self.confusion_cells[2].sum())

    @property
    def accuracy(self) -> float:
        """Fraction of documents classified correctly."""
        return float(np.trace(self.confusion) / self.documents)

    @property
    def top_k_accuracy(self) -> dict[int, float]:
        """Share of documents whose true class is among so many most probable ones, which are not all."""
        documents, _, *among = self.confidence_histogram.sum(axis=0).tolist()
        pairs = zip(TOP_K, among) if documents else ()
        return {rank: number / documents for rank, number in pairs if rank < len(self.confusion)}

    @property
    def uncalibrated_error(self) -> float:
        """Expected calibration error at temperature 1."""
        return expected_calibration_error(self.reliability if self.uncalibrated is None else self.uncalibrated)

    @cached_property
    def confusion_counts(self) -> Counts:  # type: ignore[override]
        true, predicted, documents = self.confusion_cells
        right = np.diag(self.confusion)
        columns, rows = (np.bincount(each, documents, len(right)).astype(np.int64) for each in (predicted, true))
        return np.stack([right, columns - right, rows - right], axis=1)

    def metrics(self) -> dict[str, float]:
        """Return the metrics of an epoch's record, by name without the split."""
        more = {name: getattr(self, name) for name in ("loss_error", "uncalibrated_loss")}
        return {**super().metrics(), **{name: value for name, value in more.items() if value is not None}}

    def summary(self) -> dict[str, Any]:
        """Return the scores over all classes as JSON values."""
        losses, errors = ("loss", "uncalibrated_loss"), ("calibration_error", "uncalibrated_error")
        names = ("accuracy", "macro_f1", *losses, *errors, "documents")
        top = {f"top_{rank}_accuracy": share for rank, share in self.top_k_accuracy.items()}
        return {**{name: getattr(self, name) for name in names}, **top}

    def top_confusions(self, max_confusions: int | None = None) -> list[tuple[int, int, int]]:
        """Return the most frequent confusions as (true class, predicted class, documents), the most frequent first.

        Args:
            most: largest number of confusions; ``None``: all.
        """
        cells = np.stack(self.confusion_cells, axis=1)
        wrong = cells[cells[:, 0] != cells[:, 1]]
        return list(map(tuple, wrong[np.argsort(-wrong[:, 2], kind="stable")[:max_confusions]].tolist()))


@dataclass(frozen=True)
class MultilabelScores(ClassificationScores):
    """Scores of several labels on one split.

    Attributes:
        loss: mean over the documents of the sum of the binary cross-entropies of all classes, in nats. No temperature
            changes the probabilities of several labels.
        decisions: documents with the label and predicted, only predicted, and only with the label, int64 [classes, 3].
        average_precision: float64 [classes].
        thresholds: probability from which a class is predicted, float64 [classes].
        reliability: int64 [BINS, 3]; for each interval of the probability of a class of a document, their number, how
            many are labels, and the sum of the probabilities in millionths.
        sure: int64 [precisions, 1, 2]; for each precision that the calibration promises, the number of labels that are
            predicted, and of those that are right.
        right: bool [documents]: all labels of the document are predicted and no other; ``None`` if not stored.
    """

    documents: int
    loss: float
    confusion_counts: Counts
    average_precision: Floats
    thresholds: Floats
    reliability: Counts
    is_correct: npt.NDArray[np.bool_] | None = None
    calibration: Calibration = UNCALIBRATED
    selective_counts: Counts = field(default_factory=lambda: EMPTY_SELECTIVE_COUNTS)
    is_multilabel = True

    @property
    def accuracy(self) -> float:
        """Micro F1: the score that names checkpoints and chooses epochs."""
        return float(_f1(self.confusion_counts.sum(axis=0)))

    @property
    def micro_precision_recall(self) -> tuple[float, float]:
        """Precision and recall over all labels together."""
        right, false, missed = self.confusion_counts.sum(axis=0).tolist()
        return right / max(right + false, 1), right / max(right + missed, 1)

    @property
    def mean_average_precision(self) -> float:
        """Unweighted mean of the average precision over the classes that have documents."""
        return float(self.average_precision[self.has_support].mean()) if self.has_support.any() else 0.0

    @property
    def exact_match(self) -> float | None:
        """Share of documents whose labels are all predicted, and no other; ``None`` if unknown."""
        return None if self.is_correct is None else float(self.is_correct.mean())

    def summary(self) -> dict[str, Any]:
        """Return the scores over all classes as JSON values."""
        micro = dict(
            zip(("micro_f1", "micro_precision", "micro_recall"), (self.accuracy, *self.micro_precision_recall))
        )
        names = ("macro_f1", "mean_average_precision", "loss", "calibration_error", "documents")
        return {**micro, "exact_match": self.exact_match, **{name: getattr(self, name) for name in names}}


AnyScores = Union[MulticlassScores, MultilabelScores]


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
    return interval_threshold(
        np.rint((number * _best(histogram) + PRIOR_DOCUMENTS * group_size) / (number + PRIOR_DOCUMENTS))
    )


def _best(histogram: Counts) -> npt.NDArray[np.int64]:
    """Return the interval from which predicting a class gives the highest F1, int64 [classes]."""
    positive = histogram[..., 1].sum(axis=1, keepdims=True)
    f1 = 2 * reverse_cumsum(histogram[..., 1]) / np.maximum(reverse_cumsum(histogram.sum(axis=2)) + positive, 1)
    f1[:, 0] = -1  # a threshold below all
    first, last = f1.argmax(axis=1), INTERVALS - 1 - f1[:, ::-1].argmax(axis=1)
    middle, rows = (first + last) // 2, np.arange(len(f1))
    return np.asarray(np.where(f1[rows, middle] == f1[rows, first], middle, first))


def confusion_at_thresholds(histogram: Counts, thresholds: Floats) -> Counts:
    """Count documents with the label and predicted, only predicted, and only with the label, int64 [classes, 3]."""
    is_possible = thresholds < 1
    odds = log_odds(np.where(is_possible, thresholds, DEFAULT_THRESHOLD))
    lowest = np.where(is_possible, to_intervals(odds + np.float32(1e-4)), INTERVALS)
    is_predicted = np.arange(INTERVALS) >= lowest[:, None]
    without, with_label = (np.where(is_predicted, histogram[..., n], 0).sum(axis=1) for n in (0, 1))
    return np.stack([with_label, without, histogram[..., 1].sum(axis=1) - with_label], axis=1)


def average_precision(histogram: Counts) -> Floats:
    """Return the average precision of each class, float64 [classes]; 0 for a class without documents."""
    above = histogram[:, ::-1].cumsum(axis=1)
    precision = above[..., 1] / np.maximum(above.sum(axis=2), 1)
    gained = histogram[:, ::-1, 1]
    return np.asarray((precision * gained).sum(axis=1) / np.maximum(gained.sum(axis=1), 1))


def reliability_histogram(probabilities: npt.NDArray[np.float64], is_correct: npt.NDArray[np.bool_]) -> Counts:
    """Count predictions by their probability, as in ``MulticlassScores.reliability``.

    Args:
        probabilities: float64 [n].
        right: the correct ones, bool [n].
    """
    bins = np.minimum((probabilities * BINS).astype(np.int64), BINS - 1)
    columns = (None, is_correct, np.rint(probabilities * MILLION))
    return np.stack([np.rint(np.bincount(bins, column, BINS)).astype(np.int64) for column in columns], axis=1)


def expected_calibration_error(reliability: Counts) -> float:
    """Compute the expected calibration error (Guo et al. 2017, arXiv:1706.04599, equation 3)."""
    number, right, probability = reliability.T
    return float(np.abs(right - probability / MILLION).sum() / max(number.sum(), 1))


def _f1(decisions: Counts) -> Floats:
    right, false, missed = decisions
    return np.asarray(2 * right / np.maximum(2 * right + false + missed, 1))


def _plain(value: Any) -> Any:
    """Convert a value of scores to JSON; bits to base64."""
    if isinstance(value, np.ndarray) and value.dtype == bool:
        return (
            base64.b64encode(np.packbits(value).tobytes()).decode("ascii")
            if len(value) <= MAX_STORED_DOCUMENTS
            else None
        )
    if isinstance(value, list):
        return [asdict(each) for each in value]
    if isinstance(value, Calibration):
        return value.to_dict()
    return value.tolist() if isinstance(value, np.ndarray) else value


def _bits(packed: str | None, documents: int) -> npt.NDArray[np.bool_] | None:
    """Convert ``right`` back from base64."""
    if packed is None:
        return None
    return np.unpackbits(np.frombuffer(base64.b64decode(packed), np.uint8), count=documents).astype(bool)
