"""Accumulators of metrics over a split. Each rank counts its own documents, and the counts are all-reduced."""

from abc import ABC, abstractmethod
from dataclasses import asdict
from typing import Generic, TypeVar

import numpy as np
import numpy.typing as npt

from crepe_dist.data.dataset import Split
from crepe_dist.data.targets import Targets
from crepe_dist.distributed.process_group import ProcessGroup
from crepe_dist.model.calibration import (
    INTERVALS,
    PERCENTS,
    UNCALIBRATED,
    Calibration,
    TemperatureFitter,
    log_odds,
    multilabel_calibration,
    to_intervals,
)
from crepe_dist.model.loss import quantize_losses
from crepe_dist.runs.group_bootstrap import count_by_group
from crepe_dist.runs.scores import (
    BINS,
    MAX_MISTAKES,
    TOP_K,
    TOP_K_PER_MISTAKE,
    AnyScores,
    Floats,
    Mistake,
    MulticlassScores,
    MultilabelScores,
    average_precision,
    choose_thresholds,
    confusion_at_thresholds,
    reliability_histogram,
    worst_mistakes,
)

Counts = npt.NDArray[np.int64]
Rows = npt.NDArray[np.int64]
Labels = npt.NDArray[np.int32]
Logits = npt.NDArray[np.float32]
Losses = npt.NDArray[np.float32] | npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Result = TypeVar("Result")
Numbers = TypeVar("Numbers", bound=npt.NDArray[np.generic])


class MetricAccumulator(ABC, Generic[Result]):
    """Running sums over the documents of a split.

    Call ``update`` for each batch, then ``all_reduce``, then ``result``.
    """

    def __init__(self) -> None:
        self._sums: list[npt.NDArray[np.generic]] = []

    def _register(self, array: Numbers) -> Numbers:
        """Register an array, and return it. ``all_reduce`` sums the registered arrays over the ranks in place."""
        self._sums.append(array)
        return array

    @abstractmethod
    def update(self, rows: Rows, labels: Labels, logits: Logits) -> None:
        """Add a batch of n documents.

        Args:
            rows: Row numbers in the split, int64 [n].
            labels: Classes, int32 [n].
            logits: float32 [n, classes].
        """

    def all_reduce(self, group: ProcessGroup) -> None:
        """Sum the registered arrays over the ranks. Every rank must call this method."""
        for index, array in enumerate(self._sums):
            array[...] = group.all_reduce(array, f"evaluation.sums.{index}")

    @abstractmethod
    def result(self) -> Result:
        """Return the result. After ``all_reduce``, it is the same on every rank."""


class ScoreAccumulator(MetricAccumulator[AnyScores]):
    """Base class of the score accumulators. It accumulates losses, reliability counts and correct predictions.

    Attributes:
        calibration: Calibration of the probabilities. After ``result``, it is the calibration for the next split.
    """

    def __init__(self, num_documents: int, calibration: Calibration) -> None:
        super().__init__()
        self.calibration = calibration
        self._num_documents = num_documents
        self._loss_sums: Floats = self._register(np.zeros(2))  # In nats: calibrated, uncalibrated.
        self._reliability: Counts = self._register(np.zeros((BINS, 3), np.int64))
        # 1 for each document that this rank predicted correctly. The ranks evaluate different documents, so no sum over
        # the ranks exceeds 1.
        self._correct = self._register(np.zeros(num_documents, np.int32))

    def _count(
        self, rows: Rows, is_correct: Bools, losses: tuple[Losses, Losses], confidence: tuple[Floats, Bools]
    ) -> None:
        """Count a batch.

        Args:
            rows: Row numbers of the documents, int64 [n].
            is_correct: True for each correctly predicted document, bool [n].
            losses: Losses of the documents with and without calibration, in nats.
            confidence: Two arrays of equal length: the predicted probabilities, and a mask of the correct predictions.
        """
        # The losses are rounded to multiples of a power of two. Their sum is then exact, so it does not depend on the
        # number of ranks.
        self._loss_sums += [quantize_losses(document_losses).sum() for document_losses in losses]
        self._reliability += reliability_histogram(*confidence)
        self._correct[rows[is_correct]] = 1


class MulticlassAccumulator(ScoreAccumulator):
    """Score accumulator for documents that have exactly one class.

    Args:
        split: Documents that are evaluated.
        fits_calibration: Whether to fit a calibration for the next split to this split.
    """

    def __init__(self, num_classes: int, split: Split, calibration: Calibration, *, fits_calibration: bool) -> None:
        super().__init__(len(split), calibration)
        self._split = split
        self._used = calibration  # Calibration of this split's probabilities. Fitting does not change it.
        self._precision_thresholds = list(calibration.precision_thresholds.values())
        self._confusion = self._register(np.zeros((num_classes, num_classes), np.int64))
        self._confidence_histogram = self._register(np.zeros((PERCENTS, 2 + len(TOP_K)), np.int64))
        self._uncalibrated = self._register(np.zeros((BINS, 3), np.int64))
        self._selective_counts = np.zeros((len(self._precision_thresholds), 2), np.int64)
        if self._precision_thresholds:
            self._register(self._selective_counts)
        self._fit = TemperatureFitter() if fits_calibration else None
        if self._fit:
            self._register(self._fit.sums)
        self._mistakes: list[Mistake] = []

    def update(self, rows: Rows, labels: Labels, logits: Logits) -> None:
        if not len(labels):
            return
        if self._fit:
            self._fit.add(logits, labels)
        log_probabilities = _log_softmax(logits)
        predicted = log_probabilities.argmax(axis=1)
        is_correct = predicted == labels
        np.add.at(self._confusion, (labels, predicted), 1)
        true_class = np.arange(len(labels)), labels
        uncalibrated_losses = -log_probabilities[true_class]
        if self._used.temperature != 1:
            self._uncalibrated += reliability_histogram(_exp(log_probabilities).max(axis=1), is_correct)
            log_probabilities = _log_softmax(logits / np.float32(self._used.temperature))
        probabilities = _exp(log_probabilities)
        confidence = probabilities.max(axis=1)
        self._count(rows, is_correct, (-log_probabilities[true_class], uncalibrated_losses), (confidence, is_correct))
        num_higher = (logits > logits[true_class][:, None]).sum(axis=1)
        columns = [np.ones_like(is_correct), is_correct, *(num_higher < k for k in TOP_K)]
        np.add.at(self._confidence_histogram, (100 * confidence).astype(np.int64), np.stack(columns, axis=1))
        for counts, (threshold,) in zip(self._selective_counts, self._precision_thresholds):
            is_predicted = confidence >= threshold
            counts += [is_predicted.sum(), (is_predicted & is_correct).sum()]
        self._update_mistakes(rows[~is_correct], labels[~is_correct], probabilities[~is_correct])

    def _update_mistakes(self, rows: Rows, labels: Labels, probabilities: Floats) -> None:
        """Update the list of the worst mistakes with the mistakes of a batch."""
        true_probs = probabilities[np.arange(len(labels)), labels]
        order = np.lexsort((rows, true_probs))[:MAX_MISTAKES]
        if len(self._mistakes) == MAX_MISTAKES:
            order = order[true_probs[order] <= self._mistakes[-1].probability]
        for index in order.tolist():
            ranking = np.argsort(-probabilities[index], kind="stable")[:TOP_K_PER_MISTAKE].tolist()
            pairs = tuple((label, float(probabilities[index, label])) for label in ranking)
            self._mistakes.append(Mistake(int(rows[index]), int(labels[index]), float(true_probs[index]), pairs))
        self._mistakes = worst_mistakes(self._mistakes)

    def all_reduce(self, group: ProcessGroup) -> None:
        super().all_reduce(group)
        gathered = group.all_gather_json([asdict(mistake) for mistake in self._mistakes], "evaluation.mistakes")
        self._mistakes = worst_mistakes([Mistake.from_dict(saved) for mistakes in gathered for saved in mistakes])

    def result(self) -> MulticlassScores:
        loss, uncalibrated_loss = (self._loss_sums / self._num_documents).tolist()
        loss_error = None
        if self._fit:
            self.calibration = self._fit.calibration()
            loss, loss_error = self._fit.loss()
        groups, is_correct = self._split.groups, self._correct.astype(bool)
        return MulticlassScores(
            self._confusion,
            loss,
            self._reliability,
            self._mistakes,
            is_correct,
            self._used,
            self._uncalibrated if self._used.temperature != 1 else None,
            uncalibrated_loss,
            loss_error,
            self._confidence_histogram,
            self._selective_counts,
            None if groups is None else count_by_group(groups, self._split.labels, is_correct),
        )


class MultilabelAccumulator(ScoreAccumulator):
    """Score accumulator for documents that may have multiple labels.

    Args:
        targets: Labels of the split.
        calibration: Calibration that contains a threshold for each class.
        fits_calibration: Whether to fit the thresholds to this split. The scores of this split then use the fitted
            thresholds.
    """

    def __init__(
        self, num_documents: int, targets: Targets, calibration: Calibration, *, fits_calibration: bool
    ) -> None:
        super().__init__(num_documents, calibration)
        self._targets = targets
        self._fits = fits_calibration
        self._histogram = self._register(np.zeros((len(calibration.thresholds), INTERVALS, 2), np.int64))

    def update(self, rows: Rows, labels: Labels, logits: Logits) -> None:
        if not len(rows):
            return
        is_label = self._targets.label_probs(rows) > 0
        classes = np.arange(logits.shape[1])
        np.add.at(
            self._histogram, (np.broadcast_to(classes, logits.shape), to_intervals(logits), is_label.astype(int)), 1
        )
        exact = logits.astype(np.float64)
        losses = (np.logaddexp(0, exact) - is_label * exact).sum(axis=1)
        probabilities = np.nan_to_num(1 / (1 + np.exp(-np.clip(exact, -500, 500)))).ravel()
        is_correct = ((logits >= log_odds(np.array(self.calibration.thresholds))) == is_label).all(axis=1)
        self._count(rows, is_correct, (losses, losses), (probabilities, is_label.ravel()))

    def result(self) -> MultilabelScores:
        used = self.calibration
        if self._fits:
            used = UNCALIBRATED
            self.calibration = multilabel_calibration(choose_thresholds(self._histogram), self._histogram)
        thresholds = np.array(self.calibration.thresholds)
        selective = [
            confusion_at_thresholds(self._histogram, np.array(row)) for row in used.precision_thresholds.values()
        ]
        return MultilabelScores(
            self._num_documents,
            float(self._loss_sums[0] / self._num_documents),
            confusion_at_thresholds(self._histogram, thresholds),
            average_precision(self._histogram),
            thresholds,
            self._reliability,
            None if self._fits else self._correct.astype(bool),
            used,
            np.array([[counts[:, :2].sum(), counts[:, 0].sum()] for counts in selective], np.int64),
        )


def _log_softmax(logits: Logits) -> Logits:
    """Compute the log probabilities, float32 [n, classes]."""
    logits = logits - logits.max(axis=1, keepdims=True)
    return np.asarray(logits - np.log(np.exp(logits).sum(axis=1, keepdims=True)))


def _exp(log_probabilities: Logits) -> Floats:
    """Compute probabilities from log probabilities, float64 [n, classes]."""
    # Rounding can make a log probability positive. A diverged network computes NaNs, which are replaced with 0.
    return np.nan_to_num(np.exp(np.minimum(log_probabilities, 0).astype(np.float64)))
