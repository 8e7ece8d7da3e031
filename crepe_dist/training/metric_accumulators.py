"""Accumulators of metrics over a split: each rank counts its documents, and the ranks add their counts."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import asdict, replace
from typing import Generic, TypeVar, Union

import numpy as np
import numpy.typing as npt

from crepe_dist.data.label_hierarchy import HierarchyLevel, LabelHierarchy, argmax_per_level, deepest_confident_level
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
    softmax,
    to_intervals,
)
from crepe_dist.model.loss import quantize_losses
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

MAX_SAMPLED = 4096  # Maximum number of documents whose nodes decide the thresholds of the levels.
Counts = npt.NDArray[np.int64]
Rows = npt.NDArray[np.int64]
Labels = npt.NDArray[np.int32]
Logits = npt.NDArray[np.float32]
Losses = Union[npt.NDArray[np.float32], npt.NDArray[np.float64]]
Bools = npt.NDArray[np.bool_]
Result = TypeVar("Result")
Numbers = TypeVar("Numbers", bound=npt.NDArray[np.generic])


class MetricAccumulator(ABC, Generic[Result]):
    """Running sums over the documents of a split: ``update`` for each batch, then ``all_reduce``, then ``result``."""

    def __init__(self) -> None:
        self._sums: list[npt.NDArray[np.generic]] = []

    def _summed(self, array: Numbers) -> Numbers:
        """Let ``all_reduce`` sum an array over the ranks, in place. Return the array."""
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

    def all_reduce(self, world: ProcessGroup) -> None:
        """Sum over the ranks. Every rank calls it."""
        for number, array in enumerate(self._sums):
            array[...] = world.all_reduce(array, f"evaluation.sums.{number}")

    @abstractmethod
    def result(self) -> Result:
        """Return the result, which is the same on every rank after ``all_reduce``."""


class CorrectBitmap:
    """One bit for each document of a split, set if this rank predicted the document correctly.

    Ranks score different documents, so the sum over the ranks is the union of the bits.

    Attributes:
        words: The bits, int64 [ceil(documents / 64)].
    """

    def __init__(self, documents: int) -> None:
        self.words = np.zeros(-(-documents // 64), dtype=np.int64)
        self._documents = documents

    def set(self, rows: Rows) -> None:
        """Set the bits of documents."""
        np.bitwise_or.at(self.words.view(np.uint8), rows >> 3, (128 >> (rows & 7)).astype(np.uint8))

    def unpack(self) -> Bools:
        """Return the bits as bool [documents]."""
        return np.unpackbits(self.words.view(np.uint8), count=self._documents).astype(bool)


class ScoreAccumulator(MetricAccumulator[AnyScores]):
    """Base class of the accumulators of scores: losses, reliability, and the documents that are predicted correctly.

    Attributes:
        calibration: Calibration of the probabilities. After ``result``, it is the calibration for the next split.
    """

    def __init__(self, documents: int, calibration: Calibration) -> None:
        super().__init__()
        self.calibration = calibration
        self._documents = documents
        self._loss_sums: Floats = self._summed(np.zeros(2))  # In nats: of calibrated probabilities; uncalibrated.
        self._reliability: Counts = self._summed(np.zeros((BINS, 3), np.int64))
        self._correct = CorrectBitmap(documents)
        self._summed(self._correct.words)

    def _count(
        self, rows: Rows, is_correct: Bools, losses: tuple[Losses, Losses], confidence: tuple[Floats, Bools]
    ) -> None:
        """Count a batch.

        Args:
            rows: Row numbers of the documents, int64 [n].
            is_correct: Documents that are predicted correctly, bool [n].
            losses: Losses of the documents with and without calibration, in nats.
            confidence: Probabilities of the predictions, and whether the predictions are right, of the same length.
        """
        self._loss_sums += [quantize_losses(each).sum() for each in losses]
        self._reliability += reliability_histogram(*confidence)
        self._correct.set(rows[is_correct])


class MulticlassAccumulator(ScoreAccumulator):
    """Accumulator of the scores of documents with one class each.

    Args:
        levels: Levels of the label hierarchy, the classes last.
        fits_calibration: Fit the calibration of the next split to this split.
    """

    def __init__(
        self, levels: list[HierarchyLevel], documents: int, calibration: Calibration, *, fits_calibration: bool
    ) -> None:
        super().__init__(documents, calibration)
        self._used = calibration  # Calibration of the scored probabilities; a fit does not change it.
        self._promised = list(calibration.promised.values())
        self._levels = levels[-len(self._promised[0]) :] if self._promised else []
        classes = len(levels[-1].of_class)
        self._confusion = self._summed(np.zeros((classes, classes), np.int64))
        self._answers = self._summed(np.zeros((PERCENTS, 2 + len(TOP_K)), np.int64))
        self._uncalibrated = self._summed(np.zeros((BINS, 3), np.int64))
        self._sure = np.zeros((len(self._promised), len(self._levels), 2), np.int64)
        if self._promised:
            self._summed(self._sure)
        self._fit = TemperatureFitter() if fits_calibration else None
        if self._fit:
            self._summed(self._fit.sums)
        self._mistakes: list[Mistake] = []

    def update(self, rows: Rows, labels: Labels, logits: Logits) -> None:
        if not len(labels):
            return
        if self._fit:
            self._fit.add(logits, labels)
        log_probabilities = _log_softmax(logits)
        predicted = log_probabilities.argmax(axis=1)
        is_right = predicted == labels
        np.add.at(self._confusion, (labels, predicted), 1)
        of_true = np.arange(len(labels)), labels
        uncalibrated_losses = -log_probabilities[of_true]
        if self._used.temperature != 1:
            self._uncalibrated += reliability_histogram(_probabilities(log_probabilities).max(axis=1), is_right)
            log_probabilities = _log_softmax(logits / np.float32(self._used.temperature))
        probabilities = _probabilities(log_probabilities)
        best = probabilities.max(axis=1)
        self._count(rows, is_right, (-log_probabilities[of_true], uncalibrated_losses), (best, is_right))
        above = (logits > logits[of_true][:, None]).sum(axis=1)
        is_among = [np.ones_like(is_right), is_right, *(above < rank for rank in TOP_K)]
        np.add.at(self._answers, (100 * best).astype(np.int64), np.stack(is_among, axis=1))
        nodes, shares = argmax_per_level(self._levels, probabilities)
        is_node = nodes == [level.of_class[labels] for level in self._levels]
        for sums, thresholds in zip(self._sure, self._promised):
            is_answer = deepest_confident_level(shares, thresholds) == np.arange(1, 1 + len(nodes))[:, None]
            sums += np.stack([is_answer.sum(axis=1), (is_answer & is_node).sum(axis=1)], axis=1)
        self._keep_worst(rows[~is_right], labels[~is_right], probabilities[~is_right])

    def _keep_worst(self, rows: Rows, labels: Labels, probabilities: Floats) -> None:
        """Keep the worst mistakes of a batch and of earlier batches."""
        of_true = probabilities[np.arange(len(labels)), labels]
        order = np.lexsort((rows, of_true))[:MAX_MISTAKES]
        if len(self._mistakes) == MAX_MISTAKES:
            order = order[of_true[order] <= self._mistakes[-1].probability]
        for index in order.tolist():
            ranking = np.argsort(-probabilities[index], kind="stable")[:TOP_K_PER_MISTAKE].tolist()
            pairs = tuple((label, float(probabilities[index, label])) for label in ranking)
            self._mistakes.append(Mistake(int(rows[index]), int(labels[index]), float(of_true[index]), pairs))
        self._mistakes = worst_mistakes(self._mistakes)

    def all_reduce(self, world: ProcessGroup) -> None:
        super().all_reduce(world)
        by_rank = world.all_gather_object([asdict(mistake) for mistake in self._mistakes], "evaluation.mistakes")
        self._mistakes = worst_mistakes([Mistake.from_dict(mistake) for of_rank in by_rank for mistake in of_rank])

    def result(self) -> MulticlassScores:
        loss, uncalibrated_loss = (self._loss_sums / self._documents).tolist()
        loss_error = None
        if self._fit:
            self.calibration = self._fit.calibration()
            loss, loss_error = self._fit.loss()
        return MulticlassScores(
            self._confusion,
            loss,
            self._reliability,
            self._mistakes,
            self._correct.unpack(),
            self._used,
            self._uncalibrated if self._used.temperature != 1 else None,
            uncalibrated_loss,
            loss_error,
            self._answers,
            self._sure,
        )


class MultilabelAccumulator(ScoreAccumulator):
    """Accumulator of the scores of documents with several labels.

    Args:
        calibration: Thresholds of the classes.
        fits_calibration: Choose the thresholds by this split. Its scores are then the scores at these thresholds.
    """

    def __init__(self, documents: int, targets: Targets, calibration: Calibration, *, fits_calibration: bool) -> None:
        super().__init__(documents, calibration)
        self._targets = targets
        self._fits = fits_calibration
        self._histogram = self._summed(np.zeros((len(calibration.thresholds), INTERVALS, 2), np.int64))

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
            used, self.calibration = (
                UNCALIBRATED,
                multilabel_calibration(choose_thresholds(self._histogram), self._histogram),
            )
        thresholds = np.array(self.calibration.thresholds)
        sure = [confusion_at_thresholds(self._histogram, np.array(each)) for each in used.promised.values()]
        return MultilabelScores(
            self._documents,
            float(self._loss_sums[0] / self._documents),
            confusion_at_thresholds(self._histogram, thresholds),
            average_precision(self._histogram),
            thresholds,
            self._reliability,
            None if self._fits else self._correct.unpack(),
            used,
            np.array([[[each[:, :2].sum(), each[:, 0].sum()]] for each in sure], np.int64),
        )


class HierarchyAccumulator(MetricAccumulator[Calibration]):
    """Accumulator of the most probable nodes of sampled documents, at a known temperature.

    The result is the calibration with these nodes, from which the thresholds of the levels follow.

    Args:
        calibration: Temperature of the probabilities.
    """

    def __init__(self, levels: LabelHierarchy, documents: int, calibration: Calibration) -> None:
        super().__init__()
        self._levels, self._calibration = levels.all_levels, calibration
        self._step = -(-documents // MAX_SAMPLED)
        self._nodes = self._summed(np.zeros((-(-documents // self._step), len(self._levels) + 1), np.int64))

    def update(self, rows: Rows, labels: Labels, logits: Logits) -> None:
        is_sampled = rows % self._step == 0
        shares = softmax(logits[is_sampled] / np.float32(self._calibration.temperature), np.float64)
        places = rows[is_sampled] // self._step
        nodes, sums = argmax_per_level(self._levels, shares)
        self._nodes[places, :-1] = np.nan_to_num(100 * sums.T).astype(np.int64).clip(0, PERCENTS - 1)
        for number, level in enumerate(self._levels):
            self._nodes[places, -1] += (nodes[number] == level.of_class[labels[is_sampled]]) << number

    def result(self) -> Calibration:
        nodes, times = np.unique(self._nodes, axis=0, return_counts=True)
        found = np.insert(nodes, -1, times, axis=1)
        return replace(self._calibration, nodes=tuple(" ".join(map(str, each)) for each in found.tolist()))


def _log_softmax(logits: Logits) -> Logits:
    """Compute the logarithms of the probabilities, float32 [n, classes]."""
    logits = logits - logits.max(axis=1, keepdims=True)
    return np.asarray(logits - np.log(np.exp(logits).sum(axis=1, keepdims=True)))


def _probabilities(logarithms: Logits) -> Floats:
    # Rounding may give a logarithm just above zero. A network that diverged gives NaNs.
    return np.nan_to_num(np.exp(np.minimum(logarithms, 0).astype(np.float64)))
