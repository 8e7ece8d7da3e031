"""Scores of a network on one split, for single-label and multilabel documents, and their JSON form.

Scores are computed from integer counts. The ranks sum their counts, so the scores do not depend on the number of ranks.
For multilabel documents, the log-odds of each class are counted in intervals of 1 / ``PER_UNIT``. The average precision
treats documents in the same interval as equal.
"""

import base64
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

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
from crepe_dist.runs.group_bootstrap import ALL_CLASSES, bootstrap_interval

BINS = 15  # Number of intervals of the predicted probability, as in Guo et al. 2017.
MILLION = 1_000_000  # Probabilities are summed as integer millionths, so the order of additions does not matter.
MAX_MISTAKES = 20  # Maximum number of stored mistakes per split.
TOP_K_PER_MISTAKE = 3  # Number of most probable classes that are stored per mistake.
TOP_K = (3, 5)  # Values of k of the top-k accuracies.
# If there are more classes than this, the scores are not stored, because the confusion matrix is too large.
MAX_STORED_CLASSES = 1000
MAX_STORED_DOCUMENTS = 1 << 21  # If there are more documents than this, ``is_correct`` is not stored.
# Weight of the common threshold of all classes when the threshold of one class is chosen (``choose_thresholds``). It is
# as large as the weight of this number of documents with the label.
PRIOR_DOCUMENTS = 4
DEFAULT_THRESHOLD = 0.5  # Minimum probability of a predicted label if there is no validation split.
NOT_STORED = ("loss_error",)  # Attributes that are not stored.
Counts = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
EMPTY_CONFIDENCE_HISTOGRAM: Counts = np.zeros((PERCENTS, 2 + len(TOP_K)), np.int64)
EMPTY_SELECTIVE_COUNTS: Counts = np.zeros((0, 2), np.int64)


@dataclass(frozen=True)
class Mistake:
    """A misclassified document.

    Attributes:
        row: Number of the document in its split.
        true: Index of the true class.
        probability: Predicted probability of the true class, from 0 to 1.
        ranking: Pairs of a class and its probability, the most probable first, at most ``TOP_K_PER_MISTAKE``.
    """

    row: int
    true: int
    probability: float
    ranking: tuple[tuple[int, float], ...]

    @classmethod
    def from_dict(cls, saved: dict[str, Any]) -> "Mistake":
        """Create a mistake from the values that ``asdict`` returned."""
        return cls(**{**saved, "ranking": tuple(map(tuple, saved["ranking"]))})


def worst_mistakes(mistakes: list[Mistake]) -> list[Mistake]:
    """Return the mistakes whose true classes have the lowest probabilities, at most ``MAX_MISTAKES``.

    The result does not depend on the order of the input.
    """
    return sorted(mistakes, key=lambda mistake: (mistake.probability, mistake.row))[:MAX_MISTAKES]


class ClassificationScores:
    """Base class of scores. It computes precision, recall and F1 of each class, and their means over the classes.

    Attributes:
        confusion_counts: True positives, false positives and false negatives of each class, int64 [classes, 3].
        reliability: Counts and probabilities of the predictions by interval (``reliability_histogram``).
        calibration: Calibration of the probabilities.
        selective_counts: Counts of the selective predictions, int64 [precisions, 2].
        uncalibrated_loss: Mean loss at temperature 1, in nats per document; ``None`` if it is unknown.
        is_multilabel: Whether documents have multiple labels.
    """

    confusion_counts: Counts
    reliability: Counts
    calibration: Calibration
    selective_counts: Counts
    uncalibrated_loss: float | None = None
    is_multilabel = False

    @property
    def selective_scores(self) -> list[dict[str, Any]]:
        """Coverage and precision of selective predictions at each requested precision, as JSON values.

        Precisions that no threshold reaches on the validation split are omitted. The keys of a row:

        * ``asked``: requested precision.
        * ``thresholds``: list of one threshold, or of the threshold of each class if documents have multiple labels.
          A threshold is ``None`` if no prediction is confident enough.
        * ``covered``: proportion of the documents that get a prediction. If documents have multiple labels, it is the
          proportion of the labels that are predicted.
        * ``precision``: proportion of the predictions that are correct.
        """
        rows = []
        for (target, thresholds), counts in zip(self.calibration.precision_thresholds.items(), self.selective_counts):
            predicted, correct = counts.tolist()
            coverage = (correct if self.is_multilabel else predicted) / max(self.support.sum(), 1)
            reachable = [threshold if threshold <= 1 else None for threshold in thresholds]
            values = (target, reachable, float(coverage), correct / max(predicted, 1))
            rows.append(dict(zip(("asked", "thresholds", "covered", "precision"), values)))
        return rows

    @property
    def macro_f1_error(self) -> float:
        """Standard error of the macro F1, estimated by the delta method.

        A mistake concerns two classes, the true class and the predicted class. Both are assumed to be affected equally.
        """
        correct, *wrong = self.confusion_counts.T
        denominator, f1 = np.maximum(2 * correct + sum(wrong), 1), self.f1
        squares = correct * ((2 - 2 * f1) / denominator) ** 2 + 2 * sum(wrong) * (f1 / denominator) ** 2
        return float(np.sqrt(squares[self.has_support].sum()) / max(self.has_support.sum(), 1))

    @property
    def support(self) -> Counts:
        """Number of documents of each class, int64 [classes]."""
        return np.asarray(self.confusion_counts[:, ::2].sum(axis=1))

    @property
    def has_support(self) -> npt.NDArray[np.bool_]:
        """True for each class that has documents, bool [classes]."""
        return np.asarray(self.support > 0)

    @property
    def is_predicted(self) -> npt.NDArray[np.bool_]:
        """True for each class that was predicted for at least one document, bool [classes]."""
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
        """F1 score of each class, float64 [classes]; 0 if it is undefined."""
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
        """Expected calibration error of the predicted classes, or of all classes if documents have multiple labels."""
        return expected_calibration_error(self.reliability)

    def per_class(self, classes: list[str]) -> dict[str, dict[str, Any]]:
        """Return the scores of each class as JSON values.

        The keys are precision, recall and f1 (fractions; 0 if undefined) and documents. If documents have multiple
        labels, there are also average_precision and threshold (fractions).
        """
        names = ["precision", "recall", "f1", *["average_precision", "threshold"] * self.is_multilabel, "documents"]
        attributes = {"threshold": "thresholds", "documents": "support"}
        rows = zip(*(getattr(self, attributes.get(name, name)).tolist() for name in names))
        return {class_name: dict(zip(names, row)) for class_name, row in zip(classes, rows)}

    def to_dict(self, *omitted: str) -> dict[str, Any]:
        """Convert to JSON values, without the attributes named in ``omitted``."""
        # Files of data without groups stay as they were before groups were counted.
        excluded = (*NOT_STORED, *omitted, *["group_counts"] * (getattr(self, "group_counts", None) is None))
        names = [item.name for item in fields(self) if item.name not in excluded]  # type: ignore[arg-type]
        return {name: _to_json(getattr(self, name)) for name in names}

    @classmethod
    def from_dict(cls, saved: dict[str, Any]) -> Any:
        """Create scores from the values that ``to_dict`` returned."""
        values = {name: np.array(value) if isinstance(value, list) else value for name, value in saved.items()}
        values["calibration"] = Calibration(**saved.get("calibration", {}))
        if "mistakes" in saved:
            values["mistakes"] = list(map(Mistake.from_dict, saved["mistakes"]))
        num_documents = saved["documents"] if cls.is_multilabel else int(values["confusion"].sum())
        return cls(**{**values, "is_correct": _unpack_bits(saved["is_correct"], num_documents)})


@dataclass(frozen=True)
class MulticlassScores(ClassificationScores):
    """Scores of a network on a split with single-label documents.

    Attributes:
        confusion: Confusion matrix, int64 [classes, classes]. Rows are true classes, columns are predicted classes.
        loss: Mean cross-entropy per document, in nats. The probabilities are calibrated by the temperature that was
            fitted to this split, or by ``calibration`` if no temperature was fitted to this split.
        reliability: Reliability histogram, int64 [BINS, 3]. For each interval of the predicted probability: the number
            of documents, the number of correct predictions, and the sum of the probabilities in millionths.
        mistakes: Worst mistakes (see ``worst_mistakes``).
        is_correct: Whether each prediction is correct, bool [documents], in the order of the split; ``None`` if it is
            not stored.
        calibration: Calibration of the probabilities in ``reliability`` and ``mistakes``.
        uncalibrated: Reliability histogram at temperature 1; ``None`` if ``reliability`` is already at temperature 1.
        uncalibrated_loss: Mean cross-entropy at temperature 1, in nats per document.
        loss_error: Standard error of ``loss``; ``None`` if no temperature was fitted to this split. Not stored.
        confidence_histogram: int64 [PERCENTS, 2 + len(TOP_K)]. One row per percent of predicted probability (rounded
            down): the number of documents, the number of correct predictions, and for each k of ``TOP_K``, the number
            of documents whose true class is among the k most probable classes.
        selective_counts: int64 [precisions, 2]. For each precision that the calibration reaches: the number of
            documents with a prediction, and the number of correct predictions among them.
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
    group_counts: Counts | None = None

    @property
    def num_groups(self) -> int | None:
        """Number of groups of documents; ``None`` if the documents have no groups."""
        counts = self.group_counts
        return None if counts is None else int(counts[counts[:, 0] == ALL_CLASSES, 3].sum())

    def group_interval(self, class_index: int = ALL_CLASSES) -> tuple[float, float] | None:
        """Compute the 95 % interval of the accuracy, or of the recall of a class, over the groups of documents.

        Returns:
            The interval; ``None`` if the documents have no groups.
        """
        counts = self.group_counts
        return None if counts is None else bootstrap_interval(counts[counts[:, 0] == class_index, 1:])

    @cached_property
    def confusion_cells(self) -> tuple[Counts, Counts, Counts]:
        """Non-zero cells of ``confusion`` in order: true classes, predicted classes and counts.

        There are at most as many such cells as documents, while the matrix of 20,000 classes has 400 million cells.
        """
        true, predicted = np.divmod(np.flatnonzero(self.confusion), len(self.confusion))
        return true, predicted, self.confusion[true, predicted].astype(np.int64)

    @property
    def documents(self) -> int:
        return int(self.confusion_cells[2].sum())

    @property
    def accuracy(self) -> float:
        """Fraction of the documents that are classified correctly."""
        return float(np.trace(self.confusion) / self.documents)

    @property
    def top_k_accuracy(self) -> dict[int, float]:
        """Top-k accuracy for each k of ``TOP_K`` that is smaller than the number of classes."""
        documents, _, *num_among_top_k = self.confidence_histogram.sum(axis=0).tolist()
        pairs = zip(TOP_K, num_among_top_k) if documents else ()
        return {k: count / documents for k, count in pairs if k < len(self.confusion)}

    @property
    def uncalibrated_error(self) -> float:
        """Expected calibration error at temperature 1."""
        return expected_calibration_error(self.reliability if self.uncalibrated is None else self.uncalibrated)

    @cached_property
    def confusion_counts(self) -> Counts:  # type: ignore[override]
        true, predicted, documents = self.confusion_cells
        correct = np.diag(self.confusion)
        num_predicted, num_true = (
            np.bincount(classes, documents, len(correct)).astype(np.int64) for classes in (predicted, true)
        )
        return np.stack([correct, num_predicted - correct, num_true - correct], axis=1)

    def metrics(self) -> dict[str, float]:
        """Return the metrics of an epoch's record, by name without the split."""
        optional = {name: getattr(self, name) for name in ("loss_error", "uncalibrated_loss")}
        return {**super().metrics(), **{name: value for name, value in optional.items() if value is not None}}

    def summary(self) -> dict[str, Any]:
        """Return the scores over all classes as JSON values."""
        losses, errors = ("loss", "uncalibrated_loss"), ("calibration_error", "uncalibrated_error")
        names = ("accuracy", "macro_f1", *losses, *errors, "documents")
        top = {f"top_{k}_accuracy": accuracy for k, accuracy in self.top_k_accuracy.items()}
        return {**{name: getattr(self, name) for name in names}, **top}

    def top_confusions(self, max_confusions: int | None = None) -> list[tuple[int, int, int]]:
        """Return the confusions as (true class, predicted class, number of documents), the most frequent first.

        Args:
            max_confusions: Maximum number of confusions. If it is ``None``, all confusions are returned.
        """
        cells = np.stack(self.confusion_cells, axis=1)
        wrong = cells[cells[:, 0] != cells[:, 1]]
        return list(map(tuple, wrong[np.argsort(-wrong[:, 2], kind="stable")[:max_confusions]].tolist()))


@dataclass(frozen=True)
class MultilabelScores(ClassificationScores):
    """Scores of a network on a split with multilabel documents.

    Attributes:
        documents: Number of documents.
        loss: Mean loss per document, in nats. The loss of a document is the sum of the binary cross-entropies of all
            classes. There is no temperature for multilabel probabilities.
        confusion_counts: True positives, false positives and false negatives of each class, int64 [classes, 3].
        average_precision: Average precision of each class, float64 [classes].
        thresholds: Minimum probability of a predicted class, for each class, float64 [classes].
        reliability: Reliability histogram, int64 [BINS, 3], of all (document, class) pairs. For each interval of the
            predicted probability: the number of pairs, the number of pairs in which the class is a label of the
            document, and the sum of the probabilities in millionths.
        is_correct: Whether the predicted labels of each document are exactly its labels, bool [documents]; ``None`` if
            it is not stored.
        calibration: Calibration, with the thresholds of the classes.
        selective_counts: int64 [precisions, 2]. For each precision that the calibration reaches: the number of
            predicted labels, and the number of predicted labels that are correct.
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
        """Micro F1. It appears in the names of checkpoints, and selects the epoch."""
        return float(_f1(self.confusion_counts.sum(axis=0)))

    @property
    def micro_precision_recall(self) -> tuple[float, float]:
        """Micro-averaged precision and recall."""
        true_positives, false_positives, false_negatives = self.confusion_counts.sum(axis=0).tolist()
        precision = true_positives / max(true_positives + false_positives, 1)
        return precision, true_positives / max(true_positives + false_negatives, 1)

    @property
    def mean_average_precision(self) -> float:
        """Unweighted mean of the average precision over the classes that have documents."""
        return float(self.average_precision[self.has_support].mean()) if self.has_support.any() else 0.0

    @property
    def exact_match(self) -> float | None:
        """Fraction of the documents whose predicted labels are exactly their labels; ``None`` if it is unknown."""
        return None if self.is_correct is None else float(self.is_correct.mean())

    def summary(self) -> dict[str, Any]:
        """Return the scores over all classes as JSON values."""
        precision, recall = self.micro_precision_recall
        micro = {"micro_f1": self.accuracy, "micro_precision": precision, "micro_recall": recall}
        names = ("macro_f1", "mean_average_precision", "loss", "calibration_error", "documents")
        return {**micro, "exact_match": self.exact_match, **{name: getattr(self, name) for name in names}}


AnyScores = MulticlassScores | MultilabelScores


def choose_thresholds(histogram: Counts) -> Floats:
    """Choose the threshold of each class that maximises F1.

    If a class has few documents, its best threshold is unreliable. The log-odds of the threshold of a class with n
    documents are therefore a weighted mean: the best threshold of the class has the weight n, and the best threshold of
    all classes together has the weight ``PRIOR_DOCUMENTS``.

    Args:
        histogram: Number of documents without and with the label in each interval, int64 [classes, INTERVALS, 2].

    Returns:
        Probabilities, float64 [classes].
    """
    shared_best, num_labels = _best_intervals(histogram.sum(axis=0)[None]), histogram[..., 1].sum(axis=1)
    weighted_sum = num_labels * _best_intervals(histogram) + PRIOR_DOCUMENTS * shared_best
    return interval_threshold(np.rint(weighted_sum / (num_labels + PRIOR_DOCUMENTS)))


def _best_intervals(histogram: Counts) -> npt.NDArray[np.int64]:
    """Return, for each class, the interval whose lower bound is the threshold with the highest F1, int64 [classes].

    If more than one interval has the highest F1, return the middle one.
    """
    positive = histogram[..., 1].sum(axis=1, keepdims=True)
    f1 = 2 * reverse_cumsum(histogram[..., 1]) / np.maximum(reverse_cumsum(histogram.sum(axis=2)) + positive, 1)
    f1[:, 0] = -1  # The first interval has no lower bound, so it cannot be a threshold.
    first, last = f1.argmax(axis=1), INTERVALS - 1 - f1[:, ::-1].argmax(axis=1)
    middle, rows = (first + last) // 2, np.arange(len(f1))
    return np.asarray(np.where(f1[rows, middle] == f1[rows, first], middle, first))


def confusion_at_thresholds(histogram: Counts, thresholds: Floats) -> Counts:
    """Count the true positives, false positives and false negatives of each class, int64 [classes, 3].

    Args:
        histogram: Number of documents without and with the label in each interval, int64 [classes, INTERVALS, 2].
        thresholds: Minimum probability of a predicted class, for each class, float64 [classes].
    """
    is_possible = thresholds < 1
    odds = log_odds(np.where(is_possible, thresholds, DEFAULT_THRESHOLD))
    lowest = np.where(is_possible, to_intervals(odds + np.float32(1e-4)), INTERVALS)
    is_predicted = np.arange(INTERVALS) >= lowest[:, None]
    without, with_label = (np.where(is_predicted, histogram[..., n], 0).sum(axis=1) for n in (0, 1))
    return np.stack([with_label, without, histogram[..., 1].sum(axis=1) - with_label], axis=1)


def average_precision(histogram: Counts) -> Floats:
    """Return the average precision of each class, float64 [classes]; 0 for a class without documents.

    Args:
        histogram: Number of documents without and with the label in each interval, int64 [classes, INTERVALS, 2].
    """
    above = histogram[:, ::-1].cumsum(axis=1)
    precision = above[..., 1] / np.maximum(above.sum(axis=2), 1)
    gained = histogram[:, ::-1, 1]
    return np.asarray((precision * gained).sum(axis=1) / np.maximum(gained.sum(axis=1), 1))


def reliability_histogram(probabilities: npt.NDArray[np.float64], is_correct: npt.NDArray[np.bool_]) -> Counts:
    """Count predictions by their probability, as in ``MulticlassScores.reliability``.

    Args:
        probabilities: Probabilities of the predictions, float64 [n].
        is_correct: Whether each prediction is correct, bool [n].
    """
    bins = np.minimum((probabilities * BINS).astype(np.int64), BINS - 1)
    columns = (None, is_correct, np.rint(probabilities * MILLION))
    return np.stack([np.rint(np.bincount(bins, column, BINS)).astype(np.int64) for column in columns], axis=1)


def expected_calibration_error(reliability: Counts) -> float:
    """Compute the expected calibration error (Guo et al. 2017, arXiv:1706.04599, equation 3)."""
    count, num_correct, probability = reliability.T
    return float(np.abs(num_correct - probability / MILLION).sum() / max(count.sum(), 1))


def _f1(confusion_counts: Counts) -> Floats:
    """Compute F1 from true positives, false positives and false negatives."""
    true_positives, false_positives, false_negatives = confusion_counts
    return np.asarray(2 * true_positives / np.maximum(2 * true_positives + false_positives + false_negatives, 1))


def _to_json(value: Any) -> Any:
    """Convert an attribute of scores to a JSON value. Bits are encoded in base64."""
    if isinstance(value, np.ndarray) and value.dtype == bool:
        packed = base64.b64encode(np.packbits(value).tobytes()).decode("ascii")
        return packed if len(value) <= MAX_STORED_DOCUMENTS else None
    if isinstance(value, list):
        return [asdict(mistake) for mistake in value]
    if isinstance(value, Calibration):
        return value.to_dict()
    return value.tolist() if isinstance(value, np.ndarray) else value


def _unpack_bits(packed: str | None, num_documents: int) -> npt.NDArray[np.bool_] | None:
    """Convert ``is_correct`` back from base64."""
    if packed is None:
        return None
    return np.unpackbits(np.frombuffer(base64.b64decode(packed), np.uint8), count=num_documents).astype(bool)
