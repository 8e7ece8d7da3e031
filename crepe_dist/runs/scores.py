"""Scores of a network on one split, and their JSON form beside a checkpoint.

Scores are integer counts summed over the ranks, so they do not depend on the number of ranks.
"""

from __future__ import annotations

import base64
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from crepe_dist.files import finite, integer
from crepe_dist.model.calibration import UNCALIBRATED, Calibration

if TYPE_CHECKING:
    import pandas as pd

BINS = 15  # intervals of the predicted probability, as in Guo et al. 2017
MILLION = 1_000_000  # probabilities are summed as integer millionths, so the order of additions does not matter
MISTAKES = 20  # kept per split
RANKED = 3  # most probable classes kept per mistake
MOST_CLASSES = 1000  # with more classes, no scores are stored: the confusion matrix would be too large
MOST_DOCUMENTS = 1 << 21  # with more documents, `right` is not stored
Counts = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


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

    @property
    def predicted(self) -> int:
        return self.ranking[0][0]

    @classmethod
    def of(cls, saved: Any) -> Mistake:
        """Convert from JSON; ``Scores.of`` checks the values."""
        ranking = tuple((integer(index), finite(probability, 0, 1)) for index, probability in saved["ranking"])
        return cls(integer(saved["row"]), integer(saved["true"]), finite(saved["probability"], 0, 1), ranking)


def worst(mistakes: list[Mistake]) -> list[Mistake]:
    """Return the ``MISTAKES`` with the least probable true classes, in an order independent of the input's."""
    return sorted(mistakes, key=lambda mistake: (mistake.probability, mistake.row))[:MISTAKES]


class ClassScores:
    """Scores of each class, and their means, from the decisions about it."""

    reliability: Counts

    def _decisions(self) -> Counts:
        """Count true positives, false positives and false negatives, int64 [classes, 3]."""
        raise NotImplementedError

    @property
    def class_documents(self) -> Counts:
        """Number of documents of each class, int64 [classes]."""
        return np.asarray(self._decisions()[:, ::2].sum(axis=1))

    @property
    def tested(self) -> npt.NDArray[np.bool_]:
        """Tell which classes have documents, bool [classes]."""
        return np.asarray(self.class_documents > 0)

    @property
    def predicted(self) -> npt.NDArray[np.bool_]:
        """Tell which classes were predicted, bool [classes]."""
        return np.asarray(self._decisions()[:, :2].any(axis=1))

    @property
    def precision(self) -> Floats:
        """Precision of each class, float64 [classes]; 0 for a class that is never predicted."""
        decisions = self._decisions()
        return np.asarray(decisions[:, 0] / np.maximum(decisions[:, :2].sum(axis=1), 1))

    @property
    def recall(self) -> Floats:
        """Recall of each class, float64 [classes]; 0 for a class without documents."""
        return np.asarray(self._decisions()[:, 0] / np.maximum(self.class_documents, 1))

    @property
    def f1(self) -> Floats:
        """F1 score of each class, float64 [classes]; 0 where undefined."""
        right, false, missed = self._decisions().T
        return np.asarray(2 * right / np.maximum(2 * right + false + missed, 1))

    @property
    def macro_f1(self) -> float:
        """Unweighted mean of F1 over the classes that have documents."""
        return mean(self.f1[self.tested])

    @property
    def calibration_error(self) -> float:
        """Expected calibration error: of the predicted classes, or of all classes where there are several labels."""
        return expected_calibration_error(self.reliability)

    def per_class(self, classes: list[str]) -> pd.DataFrame:
        """Return precision, recall, f1 (fractions; 0 if undefined) and documents as columns, one row per class."""
        import pandas as pd  # takes half of training's start-up time, and training does not use it

        columns = {"precision": self.precision, "recall": self.recall, "f1": self.f1}
        return pd.DataFrame({**columns, "documents": self.class_documents}, index=pd.Index(classes, name="class"))


@dataclass(frozen=True)
class Scores(ClassScores):
    """Scores of a network on one split.

    Attributes:
        confusion: int64 [classes, classes]; row = true class, column = predicted class.
        loss: mean cross-entropy per document, in nats, at temperature 1.
        reliability: int64 [BINS, 3]; for each interval of the predicted probability, the number of documents, that of
            correct predictions, and the sum of the probabilities in millionths.
        mistakes: worst mistakes, as selected by ``worst``.
        right: bool [documents], true for correct predictions, in the order of the split; ``None`` if not stored.
        calibration: calibration of the probabilities in ``reliability`` and ``mistakes``.
        uncalibrated: ``reliability`` at temperature 1; ``None`` if ``reliability`` is.
        fitted_loss: mean cross-entropy at the temperature that this split chose, and its standard error; ``None`` for
            a split that chose none. Not stored.
        table_accuracy: accuracy of Crepe's n-gram table alone; ``None`` where it was not measured. Not stored.
    """

    confusion: Counts
    loss: float
    reliability: Counts
    mistakes: list[Mistake]
    right: npt.NDArray[np.bool_] | None = None
    calibration: Calibration = UNCALIBRATED
    uncalibrated: Counts | None = None
    fitted_loss: tuple[float, float] | None = None
    table_accuracy: float | None = None

    @property
    def documents(self) -> int:
        return int(self.confusion.sum())

    @property
    def accuracy(self) -> float:
        """Fraction of documents classified correctly."""
        return float(np.trace(self.confusion) / self.confusion.sum())

    @property
    def uncalibrated_error(self) -> float:
        """Expected calibration error at temperature 1."""
        return expected_calibration_error(self.reliability if self.uncalibrated is None else self.uncalibrated)

    def _decisions(self) -> Counts:
        right = np.diag(self.confusion)
        return np.stack([right, self.confusion.sum(axis=0) - right, self.confusion.sum(axis=1) - right], axis=1)

    def summary(self) -> dict[str, Any]:
        """Return the scores over all classes as JSON values."""
        names = ("accuracy", "macro_f1", "loss", "calibration_error", "uncalibrated_error", "documents")
        return {name: getattr(self, name) for name in names}

    def confused(self, most: int) -> list[tuple[int, int, int]]:
        """Return the most frequent confusions as (true class, predicted class, documents), the most frequent first."""
        wrong = self.confusion.copy()
        np.fill_diagonal(wrong, 0)
        order = np.argsort(-wrong, axis=None, kind="stable")[:most].tolist()
        pairs = [(*divmod(cell, len(wrong)), int(wrong.flat[cell])) for cell in order]
        return [pair for pair in pairs if pair[2]]

    def to_dict(self) -> dict[str, Any]:
        """Convert to JSON values."""
        return {
            "loss": self.loss,
            "confusion": self.confusion.tolist(),
            "reliability": self.reliability.tolist(),
            "mistakes": [asdict(mistake) for mistake in self.mistakes],
            "right": packed(self.right),
            "calibration": self.calibration.to_dict(),
            "uncalibrated": None if self.uncalibrated is None else self.uncalibrated.tolist(),
        }

    @classmethod
    def of(cls, saved: Any, classes: int) -> Scores:
        """Convert from the values of ``to_dict``."""
        confusion = counts(saved["confusion"], (classes, classes))
        reliability = counts(saved["reliability"], (BINS, 3))
        mistakes = [Mistake.of(mistake) for mistake in saved["mistakes"]]
        documents = int(confusion.sum())
        numbers = {index for mistake in mistakes for index in (mistake.true, *(index for index, _ in mistake.ranking))}
        if not documents or len(mistakes) > MISTAKES or not all(mistake.ranking for mistake in mistakes):
            raise ValueError("the scores cover no document, or hold too many mistakes")
        if max(numbers, default=0) >= classes or max((mistake.row for mistake in mistakes), default=0) >= documents:
            raise ValueError("a mistake names a class or a document that does not exist")
        before = saved["uncalibrated"]
        return cls(
            confusion,
            finite(saved["loss"], name="loss"),
            reliability,
            mistakes,
            bits(saved["right"], documents),
            Calibration.of(saved),
            None if before is None else counts(before, (BINS, 3)),
        )


def count_reliability(probabilities: npt.NDArray[np.float64], right: npt.NDArray[np.bool_]) -> Counts:
    """Count predictions by their probability, as in ``Scores.reliability``.

    Args:
        probabilities: float64 [n].
        right: the correct ones, bool [n].
    """
    bins = np.minimum((probabilities * BINS).astype(np.int64), BINS - 1)
    columns = (None, right, np.rint(probabilities * MILLION))
    return np.stack([np.rint(np.bincount(bins, column, BINS)).astype(np.int64) for column in columns], axis=1)


def expected_calibration_error(reliability: Counts) -> float:
    """Compute the expected calibration error (Guo et al. 2017, arXiv:1706.04599, equation 3)."""
    number, right, probability = reliability.T
    return float(np.abs(right - probability / MILLION).sum() / max(number.sum(), 1))


def mean(values: Floats) -> float:
    return float(values.mean()) if len(values) else 0.0


def counts(saved: Any, shape: tuple[int, ...]) -> Counts:
    """Convert counts from JSON; raise ``ValueError`` if they are malformed."""
    values = np.array(saved)
    if values.shape != shape or values.dtype != np.int64 or (values < 0).any():
        raise ValueError(f"the scores do not hold {' × '.join(map(str, shape))} counts")
    return values


def packed(right: npt.NDArray[np.bool_] | None) -> str | None:
    """Convert ``right`` to JSON: base64 of its bits; ``None`` for too many documents."""
    if right is None or len(right) > MOST_DOCUMENTS:
        return None
    return base64.b64encode(np.packbits(right).tobytes()).decode("ascii")


def bits(saved: Any, documents: int) -> npt.NDArray[np.bool_] | None:
    """Convert back from ``packed``; raise ``ValueError`` if it is malformed."""
    if saved is None:
        return None
    packed = np.frombuffer(base64.b64decode(saved, validate=True), np.uint8)
    if len(packed) != -(-documents // 8):
        raise ValueError("the scores do not cover every document")
    return np.unpackbits(packed, count=documents).astype(bool)
