"""Temperature scaling: calibration of a network's probabilities (Guo et al. 2017, arXiv:1706.04599).

Logits are divided by one temperature before the softmax. The order of the classes does not change, so the accuracy does
not change either.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from crepe_dist.errors import UserError
from crepe_dist.files.json_file import parse_finite

# Candidate temperatures from 1/4 to 4. Any temperature in this range is within 2.2 % of a candidate.
TEMPERATURES = 2.0 ** (np.arange(-32, 33) / 16)
PRIOR_STRENGTH = 10  # The prior of the temperature, whose mode is 1, has the weight of this number of texts.
# Units per nat. Losses are summed as integers in these units, so that the order of the additions does not matter.
LOSS_UNITS_PER_NAT = 1 << 20
MAX_NATS = 1 << 20  # Maximum loss of one text, in nats.
BLOCK = 1 << 16  # Array elements per vectorised step.
PERCENTS = 101  # Number of histogram bins: probabilities of 0 to 100 percent, rounded down.
DEFAULT_COVERAGE = 0.95  # Fraction of the validation texts that reach ``Calibration.min_probability``.
DEVIATIONS = 1.645  # Critical value of the normal distribution for a one-sided confidence level of 95 %.
TARGET_PRECISIONS = (0.9, 0.95, 0.98, 0.99)  # Precisions whose coverage is reported.
# The log-odds of a label are clipped to -HIGHEST … HIGHEST. Each unit is divided into PER_UNIT intervals.
HIGHEST, PER_UNIT = 8, 32
INTERVALS = 2 * HIGHEST * PER_UNIT  # Number of intervals of the log-odds.


@dataclass(frozen=True)
class Calibration:
    """Temperature and thresholds of a network's probabilities, fitted to the validation split.

    Each histogram is a tuple of strings of integers ("lines"), so that the JSON does not have one line per number.

    Attributes:
        temperature: Divisor of the logits; 1 without a validation split.
        min_probability: Threshold for the probability of the most probable class. 95 % of the validation texts reach
            it. A text below the threshold may belong to none of the classes. 0 without a validation split.
        answers: Histogram of the validation texts over the probability of their most probable class, in percent,
            rounded down. The first line counts all texts. The second line counts the correctly classified texts. Empty
            without a validation split.
        labels: Precision steps of each class, for multilabel models. A step is an interval of the log-odds at which the
            precision rises. The four lines contain the class of each step, its interval, the number of validation texts
            that reach the interval, and the number of these texts that have the label.
        thresholds: Minimum probability of a predicted class, for each class of a multilabel model; otherwise empty.
    """

    temperature: float = 1.0
    min_probability: float = 0.0
    answers: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    thresholds: tuple[float, ...] = ()

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, Any]) -> "Calibration":
        """Read the calibration from a checkpoint's metadata. If there is none, return the default calibration."""
        saved = metadata.get("calibration", UNCALIBRATED.to_dict())
        thresholds = tuple(metadata["labels"]["thresholds"]) if "labels" in metadata else ()
        if "labels" in metadata and [0 < threshold < 1 for threshold in thresholds] != [True] * len(
            metadata["classes"]
        ):
            raise ValueError("the thresholds are not a probability for each class")
        temperature = parse_finite(saved["temperature"], 0.01, 100, "temperature")
        min_probability = parse_finite(saved["min_probability"], 0, 1, "min_probability")
        answers, labels = (_parse_lines(saved.get(name, ())) for name in ("answers", "labels"))
        if labels and (
            len(labels) != 4 or np.unique(_lines_to_array(labels)[0]).tolist() != list(range(len(thresholds)))
        ):
            raise ValueError("the precisions of the labels are not of each class")
        return cls(temperature, min_probability, answers, labels, thresholds)

    def to_dict(self) -> dict[str, Any]:
        """Convert to JSON values without the thresholds, which the metadata store in the entry ``labels``."""
        return {name: value for name, value in asdict(self).items() if name != "thresholds"}

    @property
    def precision_thresholds(self) -> dict[float, list[float]]:
        """Thresholds by precision. Precisions of ``TARGET_PRECISIONS`` that no threshold reaches are omitted."""
        thresholds_by_precision = (
            {precision: self._lowest_thresholds(precision) for precision in TARGET_PRECISIONS}
            if self.answers or self.labels
            else {}
        )
        return {
            precision: thresholds
            for precision, thresholds in thresholds_by_precision.items()
            if min(thresholds) < math.inf
        }

    def thresholds_for(self, precision: float) -> list[float]:
        """Return the lowest thresholds whose predictions on the validation texts have the required precision.

        The precision is estimated by the lower end of Wilson's interval (Journal of the American Statistical
        Association 22, 1927), so that thresholds are high if there are few texts.

        Returns:
            For a single-label model, one threshold. For a multilabel model, the threshold of each class. A threshold is
            infinite if no probability is high enough.

        Raises:
            UserError: There was no validation split, or all thresholds are infinite.
        """
        if not (self.answers or self.labels):
            remedy = "prepare the data with --validation and train again, or pass --min-probability"
            why = "it was trained without a validation split"
            raise UserError("the precision of the model's predictions is unknown", why, remedy)
        if min(thresholds := self._lowest_thresholds(precision)) == math.inf:
            why = "no threshold reaches this precision on the validation texts"
            raise UserError(f"the model does not reach a precision of {precision:g}", why, "give a lower precision")
        return thresholds

    def _lowest_thresholds(self, precision: float) -> list[float]:
        if self.labels:
            classes, places, *counts = _lines_to_array(self.labels)
            is_reached = wilson_lower_bound(*counts) >= precision
            lowest = np.full(classes[-1] + 1, math.inf)
            np.minimum.at(lowest, classes[is_reached], interval_threshold(places[is_reached]))
            return list(lowest.tolist())
        reached = wilson_lower_bound(*reverse_cumsum(_lines_to_array(self.answers))) >= precision
        return [int(reached.argmax()) / 100 if reached.any() else math.inf]


UNCALIBRATED = Calibration()


def multilabel_calibration(thresholds: npt.NDArray[np.float64], histogram: npt.NDArray[np.int64]) -> Calibration:
    """Build the calibration of a multilabel model.

    Args:
        thresholds: Minimum probability of a predicted class, for each class, float64 [classes].
        histogram: Number of validation texts in each interval of the log-odds, int64 [classes, ``INTERVALS``, 2]. The
            last axis separates the texts without the label from the texts with the label.
    """
    texts, right = reverse_cumsum(histogram.sum(axis=2)), reverse_cumsum(histogram[..., 1])
    # Precisions are rounded down to whole percents, and precisions of at most 50 % are not stored. This keeps the
    # metadata short if there are many classes.
    steps = np.maximum.accumulate(np.floor(100 * wilson_lower_bound(texts, right)).clip(50), axis=1)
    places = np.nonzero(np.diff(steps, axis=1, prepend=0))
    lines = tuple(" ".join(map(str, row.tolist())) for row in (*places, texts[places], right[places]))
    return Calibration(labels=lines, thresholds=tuple(thresholds.tolist()))


def to_intervals(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.int64]:
    """Return the index of the interval that contains each log-odds, int64, 0 to ``INTERVALS`` - 1; 0 for NaN."""
    scaled = np.nan_to_num((np.clip(logits, -HIGHEST, HIGHEST) + HIGHEST) * PER_UNIT)
    return np.minimum(scaled.astype(np.int64), INTERVALS - 1)


def log_odds(thresholds: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
    """Convert thresholds from probabilities to log-odds, float32 [classes]."""
    return np.log(thresholds / (1 - thresholds)).astype(np.float32)


def interval_threshold(interval: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Return the probability at the lower end of an interval of the log-odds."""
    return np.asarray(1 / (1 + np.exp(HIGHEST - np.asarray(interval, np.float64) / PER_UNIT)))


def reverse_cumsum(counts: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return the cumulative sums over the last axis. The summation starts at the end of the axis."""
    return np.asarray(counts[..., ::-1].cumsum(axis=-1)[..., ::-1])


def wilson_lower_bound(
    texts: npt.ArrayLike, right: npt.ArrayLike, deviations: float = DEVIATIONS
) -> npt.NDArray[np.float64]:
    """Return the lower end of Wilson's interval for the proportion ``right / texts``; 0 if there are no texts."""
    texts, right = np.asarray(texts), np.asarray(right)
    proportion, square = right / np.maximum(texts, 1), deviations**2 / np.maximum(texts, 1)
    spread = np.sqrt(square * (proportion * (1 - proportion) + square / 4))
    return np.asarray(np.where(texts > 0, (proportion + square / 2 - spread) / (1 + square), 0))


def _parse_lines(saved: Any) -> tuple[str, ...]:
    """Validate lines that contain equally many integers. Raise ``ValueError`` or ``TypeError`` if they do not."""
    lines = tuple(" ".join(map(str, map(int, line.split()))) for line in saved)
    _lines_to_array(lines)
    return lines


def _lines_to_array(lines: tuple[str, ...]) -> npt.NDArray[np.int64]:
    return np.array([line.split() for line in lines], dtype=object).astype(np.int64)


def softmax(logits: npt.NDArray[np.float32], dtype: npt.DTypeLike = np.float32) -> npt.NDArray[Any]:
    """Compute probabilities, [n, classes]."""
    powers = np.exp((logits - logits.max(axis=1, keepdims=True)).astype(dtype, copy=False))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


def losses_at(
    temperatures: npt.NDArray[np.float64], logits: npt.NDArray[np.float32], labels: npt.NDArray[np.int32]
) -> Iterator[tuple[slice, npt.NDArray[np.float32], npt.NDArray[np.float32]]]:
    """Compute the losses of n texts at each temperature. Process the temperatures in chunks to bound memory.

    Yields:
        For each chunk: the slice of the temperatures; the losses in nats; and the inverse of each text's largest
        probability. Both arrays are float32 [temperatures of the chunk, n].
    """
    shifted = (logits - logits.max(axis=1, keepdims=True)).astype(np.float32)
    true_logits = shifted[np.arange(len(labels)), labels]
    step = max(1, BLOCK // shifted.size)
    for start in range(0, len(temperatures), step):
        chunk = slice(start, start + step)
        divisors = temperatures[chunk, None].astype(np.float32)
        total = np.exp(shifted / divisors[..., None]).sum(axis=2)
        yield chunk, np.log(total) - true_logits / divisors, total


def to_fixed_point(losses: npt.NDArray[np.float32]) -> npt.NDArray[np.int64]:
    """Round losses in nats to integers, in units of 1/``LOSS_UNITS_PER_NAT``."""
    # If training diverged, losses may be NaN or infinite. NaN becomes 0, and infinity becomes MAX_NATS.
    return np.asarray(
        np.rint(np.nan_to_num(losses, posinf=MAX_NATS).clip(0, MAX_NATS) * LOSS_UNITS_PER_NAT).astype(np.int64)
    )


class TemperatureFitter:
    """Accumulator of the statistics that determine the calibration.

    Each rank accumulates its own texts. The sums of all ranks are then added.

    Attributes:
        sums: int64 [temperatures, 2 + 2 * PERCENTS]. A row contains the summed loss and the summed squared loss in
            units of 1/``LOSS_UNITS_PER_NAT``; a histogram of all texts over the probability of their most probable
            class, in percent, rounded down; and the same histogram of the correctly classified texts.
    """

    def __init__(self) -> None:
        self.sums = np.zeros((len(TEMPERATURES), 2 + 2 * PERCENTS), np.int64)

    def add(self, logits: npt.NDArray[np.float32], labels: npt.NDArray[np.int32]) -> None:
        """Add a batch: logits, float32 [n, classes], and labels, int32 [n]."""
        if not len(labels):
            return
        is_right = logits.argmax(axis=1) == labels
        for chunk, losses, inverse in losses_at(TEMPERATURES, logits, labels):
            sums = self.sums[chunk]
            sums[:, 0] += to_fixed_point(losses).sum(axis=1)
            sums[:, 1] += to_fixed_point(np.square(losses)).sum(axis=1)
            percents = np.nan_to_num(100 / inverse).astype(np.int64).clip(0, PERCENTS - 1)
            bins = percents + PERCENTS * np.arange(len(sums))[:, None]
            for first, selected in ((2, bins), (2 + PERCENTS, bins[:, is_right])):
                counts = np.bincount(selected.ravel(), minlength=PERCENTS * len(sums))
                sums[:, first : first + PERCENTS] += counts.reshape(-1, PERCENTS)

    def loss(self) -> tuple[float, float]:
        """Return the mean loss at the fitted temperature, in nats, and the standard error of this mean.

        At least one text must have been added.
        """
        total, squares = (self.sums[self._best(), :2] / LOSS_UNITS_PER_NAT).tolist()
        texts = int(self.sums[0, 2 : 2 + PERCENTS].sum())
        mean = total / texts
        return mean, math.sqrt(max(0.0, squares / texts - mean**2) / texts)

    def calibration(self) -> Calibration:
        """Return the calibration with the temperature that has the lowest loss.

        A prior keeps the temperature near 1 if there are few texts. Without the prior, ten correctly classified texts
        would already give the lowest temperature. The prior is a gamma distribution of the inverse temperature, and its
        mode is 1.
        """
        best = self._best()
        texts, right = self.sums[best, 2:].reshape(2, PERCENTS)
        above = texts.sum() - np.cumsum(texts)  # Number of texts that reach 1, 2, … percent.
        percent = int((above >= DEFAULT_COVERAGE * texts.sum()).sum())
        answers = tuple(" ".join(map(str, counts.tolist())) for counts in (texts, right))
        return Calibration(round(float(TEMPERATURES[best]), 4), percent / 100, answers)

    def _best(self) -> int:
        inverse = 1 / TEMPERATURES
        losses = self.sums[:, 0] / LOSS_UNITS_PER_NAT + PRIOR_STRENGTH * (inverse - np.log(inverse))
        return int(losses.argmin())
