"""Evaluation of a network on a split, exact for any number of ranks: counts are summed, not averaged."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from crepe_dist.data.dataset import Dataset, Split
from crepe_dist.data.label_hierarchy import Level, Levels, deepest, most_probable
from crepe_dist.data.targets import SEVERAL, Targets
from crepe_dist.distributed.process_group import World
from crepe_dist.model.calibration import (
    INTERVALS,
    PERCENTS,
    UNCALIBRATED,
    Calibration,
    CalibrationCounts,
    intervals,
    log_odds,
    of_labels,
    softmax,
)
from crepe_dist.model.loss import rounded
from crepe_dist.runs.scores import (
    BINS,
    DEFAULT_THRESHOLD,
    MISTAKES,
    RANKED,
    RANKS,
    AnyScores,
    LabelScores,
    Mistake,
    Scores,
    average_precision,
    choose_thresholds,
    count_reliability,
    decided,
    worst,
)
from crepe_dist.training.eval_loop import Counts, RightBits, Scorer, Totals, pass_over

SAMPLED = 4096  # documents that decide from which probability on a node is an answer
BATCH_SIZE = 512  # documents per step, over all ranks


def evaluate_splits(
    engine: Scorer, data: Dataset, world: World, is_stopping: Callable[[], bool]
) -> dict[str, AnyScores]:
    """Score the network on every split but the train split; return the scores by name.

    The validation split is scored first, at temperature 1. It fits the temperature at which the test split is scored,
    or chooses the thresholds of several labels. Exception: its own loss is the loss at the fitted temperature.

    Raises:
        EvaluationStopped: on every rank, if ``is_stopping`` became true on one.
    """
    scores: dict[str, AnyScores] = {}
    decision = UNCALIBRATED
    for name in ("validation", "test"):
        if name in data.splits:
            split = data.splits[name]
            totals = _totals(engine, split, decision, data.levels, chooses=name == "validation")
            pass_over(engine, split, BATCH_SIZE, world, totals, is_stopping)
            scores[name] = totals.scores()
            decision = totals.decision
            if name == "validation" and data.levels is not None:
                nodes = LevelTotals(data.levels, len(split), decision)
                pass_over(engine, split, BATCH_SIZE, world, nodes, is_stopping)
                decision = nodes.decision
    return scores


def evaluate(
    engine: Scorer, split: Split, batch_size: int, world: World, decision: Calibration, levels: Levels | None = None
) -> AnyScores:
    """Score a network on a split; every rank calls it and gets the same result.

    Args:
        batch_size: documents per step, over all ranks.
        decision: calibration of the probabilities; without thresholds of several labels, ``DEFAULT_THRESHOLD``.
        levels: levels of the classes, if these form a tree.
    """
    totals = _totals(engine, split, decision, levels)
    pass_over(engine, split, batch_size, world, totals)
    return totals.scores()


def _totals(
    engine: Scorer, split: Split, decision: Calibration, levels: Levels | None, *, chooses: bool = False
) -> ClassTotals | LabelTotals:
    classes, targets = engine.shape.classes, split.targets
    if targets.kind == SEVERAL:
        decision = replace(decision, thresholds=decision.thresholds or (DEFAULT_THRESHOLD,) * classes)
        return LabelTotals(len(split), targets, decision, chooses=chooses)
    nodes = levels.all if levels else [Level([""] * classes, np.arange(classes))]
    return ClassTotals(nodes, len(split), decision, chooses=chooses)


class ClassTotals(Totals):
    """Running totals of documents of one class each.

    Args:
        levels: nodes of the classes that form a tree, and the classes.
        chooses: choose the calibration of the next split by this one.
    """

    def __init__(self, levels: list[Level], documents: int, calibration: Calibration, *, chooses: bool) -> None:
        super().__init__()
        self._documents = documents
        self._calibration = calibration
        self._promised = list(calibration.promised.values())
        self._levels = levels[-len(self._promised[0]) :] if self._promised else []
        self._fit = CalibrationCounts() if chooses else None
        classes = len(levels[-1].of_class)
        self._answers = np.zeros((PERCENTS, 2 + len(RANKS)), dtype=np.int64)
        self._sure = np.zeros((len(self._promised), len(self._levels), 2), dtype=np.int64)
        self._confusion = np.zeros((classes, classes), dtype=np.int64)
        self._reliability = np.zeros((BINS, 3), dtype=np.int64)
        self._uncalibrated = np.zeros((BINS, 3), dtype=np.int64)
        self._right = RightBits(documents)

    @property
    def counts(self) -> list[Counts]:
        fitted = [self._fit.sums] if self._fit else []
        sums = [self._confusion, self._reliability, self._uncalibrated, self._right.words, self._answers]
        return [*sums, *([self._sure] if self._promised else []), *fitted]

    @property
    def decision(self) -> Calibration:
        """Calibration of the next split, given the counts of all ranks."""
        return self._fit.fitted() if self._fit else self._calibration

    def add(self, rows: npt.NDArray[np.int64], labels: npt.NDArray[np.int32], logits: npt.NDArray[np.float32]) -> None:
        if not len(labels):
            return
        if self._fit:
            self._fit.add(logits, labels)
        log_probabilities = _log_softmax(logits)
        predicted = log_probabilities.argmax(axis=1)
        is_right = predicted == labels
        np.add.at(self._confusion, (labels, predicted), 1)
        of_true = np.arange(len(labels)), labels
        uncalibrated = rounded(log_probabilities[of_true]).sum()
        if self._calibration.temperature != 1:
            self._uncalibrated += count_reliability(_probabilities(log_probabilities).max(axis=1), is_right)
            log_probabilities = _log_softmax(logits / np.float32(self._calibration.temperature))
        self.losses -= rounded(log_probabilities[of_true]).sum(), uncalibrated
        probabilities = _probabilities(log_probabilities)
        best = probabilities.max(axis=1)
        self._reliability += count_reliability(best, is_right)
        above = (logits > logits[np.arange(len(labels)), labels, None]).sum(axis=1)
        is_among = [np.ones_like(is_right), is_right, *(above < rank for rank in RANKS)]
        np.add.at(self._answers, (100 * best).astype(np.int64), np.stack(is_among, axis=1))
        nodes, shares = most_probable(self._levels, probabilities)
        is_node = nodes == [level.of_class[labels] for level in self._levels]
        for sums, thresholds in zip(self._sure, self._promised):
            is_answer = deepest(shares, thresholds) == np.arange(1, 1 + len(nodes))[:, None]
            sums += np.stack([is_answer.sum(axis=1), (is_answer & is_node).sum(axis=1)], axis=1)
        self._right.set(rows[is_right])
        self._remember(rows[~is_right], labels[~is_right], probabilities[~is_right])

    def _remember(
        self, rows: npt.NDArray[np.int64], labels: npt.NDArray[np.int32], probabilities: npt.NDArray[np.float64]
    ) -> None:
        """Keep the worst mistakes."""
        of_true = probabilities[np.arange(len(labels)), labels]
        order = np.lexsort((rows, of_true))[:MISTAKES]
        if len(self.mistakes) == MISTAKES:
            order = order[of_true[order] <= self.mistakes[-1].probability]
        for index in order.tolist():
            ranking = np.argsort(-probabilities[index], kind="stable")[:RANKED].tolist()
            pairs = tuple((label, float(probabilities[index, label])) for label in ranking)
            self.mistakes.append(Mistake(int(rows[index]), int(labels[index]), float(of_true[index]), pairs))
        self.mistakes = worst(self.mistakes)

    def scores(self) -> Scores:
        """Return the scores of the split, given the totals of all ranks."""
        loss, uncalibrated_loss = (self.losses / self._documents).tolist()
        loss, error = self._fit.loss() if self._fit else (loss, None)
        return Scores(
            self._confusion,
            loss,
            self._reliability,
            worst(self.mistakes),
            self._right.unpacked(),
            self._calibration,
            self._uncalibrated if self._calibration.temperature != 1 else None,
            uncalibrated_loss,
            error,
            self._answers,
            self._sure,
        )


class LevelTotals(Totals):
    """The most probable nodes of sampled documents whose classes form a tree, at a known temperature.

    Args:
        calibration: temperature of the probabilities.
    """

    def __init__(self, levels: Levels, documents: int, calibration: Calibration) -> None:
        super().__init__()
        self._levels, self._calibration = levels.all, calibration
        self._step = -(-documents // SAMPLED)
        self._nodes = np.zeros((-(-documents // self._step), len(self._levels) + 1), np.int64)

    @property
    def counts(self) -> list[Counts]:
        return [self._nodes]

    @property
    def decision(self) -> Calibration:
        """The calibration with these nodes, given the totals of all ranks."""
        nodes, times = np.unique(self._nodes, axis=0, return_counts=True)
        found = np.insert(nodes, -1, times, axis=1)
        return replace(self._calibration, nodes=tuple(" ".join(map(str, each)) for each in found.tolist()))

    def add(self, rows: npt.NDArray[np.int64], labels: npt.NDArray[np.int32], logits: npt.NDArray[np.float32]) -> None:
        is_sampled = rows % self._step == 0
        shares = softmax(logits[is_sampled] / np.float32(self._calibration.temperature), np.float64)
        places = rows[is_sampled] // self._step
        nodes, sums = most_probable(self._levels, shares)
        self._nodes[places, :-1] = np.nan_to_num(100 * sums.T).astype(np.int64).clip(0, PERCENTS - 1)
        for number, level in enumerate(self._levels):
            self._nodes[places, -1] += (nodes[number] == level.of_class[labels[is_sampled]]) << number


class LabelTotals(Totals):
    """Running totals of documents with several labels.

    Args:
        decision: the thresholds of the classes.
        chooses: choose them by this split.
    """

    def __init__(self, documents: int, targets: Targets, decision: Calibration, *, chooses: bool) -> None:
        super().__init__()
        classes = len(decision.thresholds)
        self._documents = documents
        self._targets = targets
        self._chooses = chooses
        self._histogram = np.zeros((classes, INTERVALS, 2), dtype=np.int64)
        self._reliability = np.zeros((BINS, 3), dtype=np.int64)
        self._right = RightBits(documents)
        self.decision = decision

    @property
    def counts(self) -> list[Counts]:
        return [self._histogram, self._reliability, self._right.words]

    def add(self, rows: npt.NDArray[np.int64], labels: npt.NDArray[np.int32], logits: npt.NDArray[np.float32]) -> None:
        if not len(rows):
            return
        is_label = self._targets.shares(rows) > 0
        classes = np.arange(logits.shape[1])
        within = intervals(logits)
        np.add.at(self._histogram, (np.broadcast_to(classes, logits.shape), within, is_label.astype(int)), 1)
        exact = logits.astype(np.float64)
        self.losses += rounded((np.logaddexp(0, exact) - is_label * exact).sum(axis=1)).sum()
        probabilities = np.nan_to_num(1 / (1 + np.exp(-np.clip(exact, -500, 500)))).ravel()
        self._reliability += count_reliability(probabilities, is_label.ravel())
        lowest = log_odds(np.array(self.decision.thresholds))
        self._right.set(rows[((logits >= lowest) == is_label).all(axis=1)])

    def scores(self) -> LabelScores:
        """Return the scores of the split, given the totals of all ranks; choose ``decision`` if this split does."""
        if self._chooses:
            self.decision = of_labels(choose_thresholds(self._histogram), self._histogram)
        thresholds = np.array(self.decision.thresholds)
        calibration = UNCALIBRATED if self._chooses else self.decision
        sure = [decided(self._histogram, np.array(each)) for each in calibration.promised.values()]
        return LabelScores(
            self._documents,
            float(self.losses[0] / self._documents),
            decided(self._histogram, thresholds),
            average_precision(self._histogram),
            thresholds,
            self._reliability,
            None if self._chooses else self._right.unpacked(),
            calibration,
            np.array([[[each[:, :2].sum(), each[:, 0].sum()]] for each in sure], np.int64),
        )


def _log_softmax(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Compute the logarithms of the probabilities, float32 [n, classes]."""
    logits = logits - logits.max(axis=1, keepdims=True)
    return np.asarray(logits - np.log(np.exp(logits).sum(axis=1, keepdims=True)))


def _probabilities(logarithms: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    # Rounding may give a logarithm just above zero; a network that diverged gives NaNs.
    return np.nan_to_num(np.exp(np.minimum(logarithms, 0).astype(np.float64)))
