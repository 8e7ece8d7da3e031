"""Calibration of a network's probabilities by one temperature (Guo et al. 2017, arXiv:1706.04599).

Logits are divided by the temperature before the softmax. The order of the classes, and with it the accuracy, stays.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from crepe_dist.errors import UserError
from crepe_dist.files.json_file import parse_finite

TEMPERATURES = 2.0 ** (np.arange(-32, 33) / 16)  # from 1/4 to 4; the nearest one is at most 2.2 % off
PRIOR_STRENGTH = 10  # strength of the belief in temperature 1, in texts
LOSS_UNITS_PER_NAT = 1 << 20  # per nat: losses are summed as integers, so the order of additions does not matter
MAX_NATS = 1 << 20  # of one text
BLOCK = 1 << 16  # numbers per vectorised step
PERCENTS = 101
DEFAULT_COVERAGE = 0.95  # share of the validation texts that reach the threshold
DEVIATIONS = 1.645  # one-sided confidence of 95 %
TARGET_PRECISIONS = (0.9, 0.95, 0.98, 0.99)  # precisions whose coverage is scored
HIGHEST, PER_UNIT = 8, 32  # log-odds of labels that are told apart, and intervals per unit
INTERVALS = 2 * HIGHEST * PER_UNIT


@dataclass(frozen=True)
class Calibration:
    """Temperature and threshold of a network's probabilities, fitted to a validation split.

    Attributes:
        temperature: divisor of the logits; 1 without a validation split.
        min_probability: threshold that 95 % of the validation texts reach: a text with a lower probability of its most
            probable class may belong to none of the classes. 0 without a validation split.
        answers: number of validation texts by the probability of their most probable class, in whole percents rounded
            down, and of those for which it is right; empty without a validation split. Two lines of numbers, as JSON
            with one number a line would be long.
        nodes: if the classes form a tree, sampled validation texts: the whole percents of their most probable node of
            each level and of their class, the number of such texts, and a bit for each level that is right; a line of
            numbers each.
        labels: if a text may have several, the intervals of the log-odds from which the answers of a class are surer
            than from any lower one: lines of the classes, the intervals, and the number of validation texts that reach
            them, all and those with the label.
        thresholds: probability from which each of several labels is predicted; empty for one label.
    """

    temperature: float = 1.0
    min_probability: float = 0.0
    answers: tuple[str, ...] = ()
    nodes: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    thresholds: tuple[float, ...] = ()

    @classmethod
    def from_metadata(cls, about: Mapping[str, Any]) -> Calibration:
        """Read the calibration of a checkpoint from its description; the default one if it has none."""
        saved = about.get("calibration", UNCALIBRATED.to_dict())
        thresholds = tuple(about["labels"]["thresholds"]) if "labels" in about else ()
        if "labels" in about and [0 < each < 1 for each in thresholds] != [True] * len(about["classes"]):
            raise ValueError("the thresholds are not a probability for each class")
        temperature = parse_finite(saved["temperature"], 0.01, 100, "temperature")
        min_probability = parse_finite(saved["min_probability"], 0, 1, "min_probability")
        answers, nodes, labels = (_lines(saved.get(name, ())) for name in ("answers", "nodes", "labels"))
        if labels and (len(labels) != 4 or np.unique(_numbers(labels)[0]).tolist() != list(range(len(thresholds)))):
            raise ValueError("the precisions of the labels are not of each class")
        return cls(temperature, min_probability, answers, nodes, labels, thresholds)

    def to_dict(self) -> dict[str, Any]:
        """Convert to JSON values; the thresholds of labels are stored beside it."""
        return {name: value for name, value in asdict(self).items() if name != "thresholds"}

    @property
    def promised(self) -> dict[float, list[float]]:
        """Thresholds of those of the ``ASKED`` precisions that some answers reach."""
        found = {asked: self._lowest(asked) for asked in TARGET_PRECISIONS} if self.answers or self.labels else {}
        return {asked: thresholds for asked, thresholds in found.items() if min(thresholds) < math.inf}

    def thresholds_for(self, precision: float) -> list[float]:
        """Return the lowest probability from which the answers to the validation texts have this precision.

        The precision is the lower end of Wilson's interval (Journal of the American Statistical Association 22, 1927),
        so that few texts promise little. A node above the classes answers only where no class and no node below it
        does, so that level is judged by these texts.

        Returns:
            The threshold of each level above the classes, infinite if none is high enough, and that of the classes; or,
            of several labels, that of each class.

        Raises:
            UserError: there was no validation split, or no threshold is high enough.
        """
        if not (self.answers or self.labels):
            remedy = "prepare with --validation, and train again; or give --min-probability"
            raise UserError("the model does not know the precision of its answers", "no split told it", remedy)
        if min(thresholds := self._lowest(precision)) == math.inf:
            why = "no threshold is so sure on the validation texts"
            raise UserError(f"the model does not reach a precision of {precision:g}", why, "ask for less")
        return thresholds

    def _lowest(self, precision: float) -> list[float]:
        if self.labels:
            classes, places, *counts = _numbers(self.labels)
            is_reached = wilson_lower_bound(*counts) >= precision
            found = np.full(classes[-1] + 1, math.inf)
            np.minimum.at(found, classes[is_reached], interval_threshold(places[is_reached]))
            return list(found.tolist())
        percents, texts, right = np.arange(PERCENTS)[:, None], *_numbers(self.answers)
        right = right[:, None]
        if self.nodes:
            *of_levels, texts, is_right = _numbers(self.nodes).T
            percents = np.stack(of_levels, axis=1)
            right = texts[:, None] * (is_right[:, None] >> np.arange(percents.shape[1]) & 1)
        thresholds: list[float] = []
        is_left = np.ones(len(texts), np.bool_)
        for of_level, right_at in zip(percents.T[::-1], right.T[::-1]):  # from the classes up: those texts are answered
            counts = [
                reverse_cumsum(np.bincount(of_level, weights * is_left, PERCENTS)) for weights in (texts, right_at)
            ]
            reached = wilson_lower_bound(*counts) >= precision
            thresholds.insert(0, int(reached.argmax()) / 100 if reached.any() else math.inf)
            is_left &= of_level < 100 * thresholds[0]
        return thresholds


UNCALIBRATED = Calibration()


def multilabel_calibration(thresholds: npt.NDArray[np.float64], histogram: npt.NDArray[np.int64]) -> Calibration:
    """Return the calibration of several labels.

    Args:
        thresholds: probability from which each class is predicted, float64 [classes].
        histogram: int64 [classes, ``INTERVALS``, 2]: validation texts without and with the label in each interval.
    """
    texts, right = reverse_cumsum(histogram.sum(axis=2)), reverse_cumsum(histogram[..., 1])
    # Steps of a percent, from one half on, keep the description of many classes short.
    steps = np.maximum.accumulate(np.floor(100 * wilson_lower_bound(texts, right)).clip(50), axis=1)
    places = np.nonzero(np.diff(steps, axis=1, prepend=0))
    lines = tuple(" ".join(map(str, each.tolist())) for each in (*places, texts[places], right[places]))
    return Calibration(labels=lines, thresholds=tuple(thresholds.tolist()))


def to_intervals(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.int64]:
    """Return the interval of each log-odds, int64, 0 to ``INTERVALS`` - 1; those of a network that diverged are 0."""
    scaled = np.nan_to_num((np.clip(logits, -HIGHEST, HIGHEST) + HIGHEST) * PER_UNIT)
    return np.minimum(scaled.astype(np.int64), INTERVALS - 1)


def log_odds(thresholds: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
    """Return the log-odds from which a class is predicted, float32 [classes]."""
    return np.log(thresholds / (1 - thresholds)).astype(np.float32)


def interval_threshold(interval: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Return the probability at the lower end of an interval of the log-odds."""
    return np.asarray(1 / (1 + np.exp(HIGHEST - np.asarray(interval, np.float64) / PER_UNIT)))


def reverse_cumsum(counts: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Add up counts from each place of the last axis on."""
    return np.asarray(counts[..., ::-1].cumsum(axis=-1)[..., ::-1])


def wilson_lower_bound(
    texts: npt.ArrayLike, right: npt.ArrayLike, deviations: float = DEVIATIONS
) -> npt.NDArray[np.float64]:
    """Return the lower end of Wilson's interval of ``right / texts``; 0 without texts."""
    texts, right = np.asarray(texts), np.asarray(right)
    share, square = right / np.maximum(texts, 1), deviations**2 / np.maximum(texts, 1)
    spread = np.sqrt(square * (share * (1 - share) + square / 4))
    return np.asarray(np.where(texts > 0, (share + square / 2 - spread) / (1 + square), 0))


def _lines(saved: Any) -> tuple[str, ...]:
    """Return lines of whole numbers, all of the same length; raise ``ValueError`` or ``TypeError`` if they are none."""
    lines = tuple(" ".join(map(str, map(int, each.split()))) for each in saved)
    _numbers(lines)
    return lines


def _numbers(lines: tuple[str, ...]) -> npt.NDArray[np.int64]:
    return np.array([line.split() for line in lines], dtype=object).astype(np.int64)


def softmax(logits: npt.NDArray[np.float32], dtype: npt.DTypeLike = np.float32) -> npt.NDArray[Any]:
    """Compute probabilities, [n, classes]."""
    powers = np.exp((logits - logits.max(axis=1, keepdims=True)).astype(dtype, copy=False))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


def losses_at(
    temperatures: npt.NDArray[np.float64], logits: npt.NDArray[np.float32], labels: npt.NDArray[np.int32]
) -> Iterator[tuple[slice, npt.NDArray[np.float32], npt.NDArray[np.float32]]]:
    """Yield, for some of k temperatures at a time, the losses of n texts at them, in nats.

    Returns:
        Which temperatures; losses; and the inverse of the texts' largest probabilities; both float32 [k, n].
    """
    below = (logits - logits.max(axis=1, keepdims=True)).astype(np.float32)
    of_true = below[np.arange(len(labels)), labels]
    step = max(1, BLOCK // below.size)
    for start in range(0, len(temperatures), step):
        some = slice(start, start + step)
        divisors = temperatures[some, None].astype(np.float32)
        total = np.exp(below / divisors[..., None]).sum(axis=2)
        yield some, np.log(total) - of_true / divisors, total


def to_fixed_point(losses: npt.NDArray[np.float32]) -> npt.NDArray[np.int64]:
    """Round losses in nats to whole multiples of 1/``UNITS``."""
    # A network that diverged gives NaNs and infinities.
    return np.asarray(
        np.rint(np.nan_to_num(losses, posinf=MAX_NATS).clip(0, MAX_NATS) * LOSS_UNITS_PER_NAT).astype(np.int64)
    )


class TemperatureFitter:
    """Sums over scored texts from which a calibration follows. Ranks score different texts, and add their sums.

    Attributes:
        sums: int64 [temperatures, 2 + 2 * PERCENTS]; for each of ``TEMPERATURES``, the loss and its square in
            1/``UNITS``, and the number of texts by the probability of their most probable class, in whole percents
            rounded down: first the number of all texts, then of the correctly classified texts.
    """

    def __init__(self) -> None:
        self.sums = np.zeros((len(TEMPERATURES), 2 + 2 * PERCENTS), np.int64)

    def add(self, logits: npt.NDArray[np.float32], labels: npt.NDArray[np.int32]) -> None:
        """Add a batch: logits, float32 [n, classes]; labels, int32 [n]."""
        if not len(labels):
            return
        is_right = logits.argmax(axis=1) == labels
        for some, losses, inverse in losses_at(TEMPERATURES, logits, labels):
            sums = self.sums[some]
            sums[:, 0] += to_fixed_point(losses).sum(axis=1)
            sums[:, 1] += to_fixed_point(np.square(losses)).sum(axis=1)
            percents = np.nan_to_num(100 / inverse).astype(np.int64).clip(0, PERCENTS - 1)
            places = percents + PERCENTS * np.arange(len(sums))[:, None]
            for first, some_places in ((2, places), (2 + PERCENTS, places[:, is_right])):
                counts = np.bincount(some_places.ravel(), minlength=PERCENTS * len(sums))
                sums[:, first : first + PERCENTS] += counts.reshape(-1, PERCENTS)

    def loss(self) -> tuple[float, float]:
        """Return the mean loss of at least one text at the fitted temperature, in nats, and its standard error."""
        total, squares = (self.sums[self._best(), :2] / LOSS_UNITS_PER_NAT).tolist()
        texts = int(self.sums[0, 2 : 2 + PERCENTS].sum())
        mean = total / texts
        return mean, math.sqrt(max(0.0, squares / texts - mean**2) / texts)

    def calibration(self) -> Calibration:
        """Choose the temperature of the lowest loss, and the threshold at that temperature.

        A prior keeps the temperature of few texts near 1. Without it, ten texts that are classified correctly would
        get the lowest temperature. It is a Gamma density of the inverse temperature with its mode at 1.
        """
        best = self._best()
        texts, right = self.sums[best, 2:].reshape(2, PERCENTS)
        above = texts.sum() - np.cumsum(texts)  # texts that reach 1, 2, … percent
        least = int((above >= DEFAULT_COVERAGE * texts.sum()).sum())
        answers = tuple(" ".join(map(str, each.tolist())) for each in (texts, right))
        return Calibration(round(float(TEMPERATURES[best]), 4), least / 100, answers)

    def _best(self) -> int:
        inverse = 1 / TEMPERATURES
        losses = self.sums[:, 0] / LOSS_UNITS_PER_NAT + PRIOR_STRENGTH * (inverse - np.log(inverse))
        return int(losses.argmin())
