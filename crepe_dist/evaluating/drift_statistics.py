"""Shares of texts, and of what they consist of, that tell whether new texts are as those of the test split.

Every figure is a share: a part of each text, over the whole. Texts are what chance draws. Two shares are compared as
angles, 2 arcsin √share, whose variance hardly depends on the share, so that rare classes raise no false alarm.
"""

from __future__ import annotations

from statistics import NormalDist
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from crepe_dist.data.arrays import hash_texts
from crepe_dist.data.text_preprocessing import FIELD_SEPARATOR
from crepe_dist.formatting import percent, pluralize
from crepe_dist.networks.ngrams.config import NGramConfig
from crepe_dist.networks.ngrams.hashing import hash_documents
from crepe_dist.predicting.predictor import Predictor
from crepe_dist.reports.score_page import interval

FALSE_ALARMS = 0.03  # nominal probability of one in any figure; of 100 texts, whose shares are skewed, it is 0.04
TAIL = 10  # short texts of the test split, and long ones, are one of so many
MAX_VALUES = 16  # of a column, of which each has a figure
BATCH = 256
BINS = 10  # of the probability, whose shares are drawn and not judged
HISTOGRAM, MEAN = "histogram", "mean of the most probable class"
ProportionTable = Any  # pandas' data frame, a row for each share


def drop_duplicates(texts: list[str], learnt: npt.NDArray[np.uint64]) -> list[str]:
    """Leave out repeated texts, which are no further evidence, and those whose hashes are given."""
    found, first = np.unique(hash_texts(text.encode("utf-8", "surrogatepass") for text in texts), return_index=True)
    return [texts[row] for row in np.sort(first[~np.isin(found, learnt)]).tolist()]


class DriftStatistics:
    """Sums over texts, composed as data sets store them, from which the shares follow.

    Args:
        texts: those of the test split, by which short and long ones are told.
    """

    def __init__(self, predictor: Predictor, texts: list[str]) -> None:
        lengths, shape = sorted(len(text.partition(FIELD_SEPARATOR)[0]) for text in texts), predictor.engine.config
        self._short, self._long = lengths[len(lengths) // TAIL], lengths[-1 - len(lengths) // TAIL]
        self._predictor, self._table = predictor, getattr(shape, "ngram_config", shape)
        if isinstance(self._table, NGramConfig):
            # A row starts at zero, and the first training document that has it moves it.
            self._is_new = ~predictor.engine.arrays[shape.sparse_parameters[0]].any(axis=1)

    def sums(self, texts: list[str]) -> ProportionTable:
        """Sum the part, the whole, their products and 1 over texts, a row for each share."""
        total: Any = 0
        for start in range(0, len(texts), BATCH):
            shares = self.shares(texts[start : start + BATCH])
            parts, wholes = (np.array([each[place] for each in shares.values()], np.float64) for place in (0, 1))
            terms = parts, wholes, parts * parts, parts * wholes, wholes * wholes, np.ones_like(parts)
            total = total + np.array([each.sum(axis=1) for each in terms])
        return pd.DataFrame(total.T, pd.MultiIndex.from_tuples(shares), ["part", "whole", "aa", "ab", "bb", "texts"])

    def shares(self, rows: list[str]) -> dict[tuple[str, str], tuple[Any, Any]]:
        """Return the part and the whole of each text, by group and name of the share."""
        predictor, ones, text = self._predictor, np.ones(len(rows)), "text"
        beside, thresholds = predictor.composition.beside, predictor.thresholds
        texts, *columns = zip(*(row.split(FIELD_SEPARATOR) if beside else [row] for row in rows))
        composed = list(map(predictor.composition.without_html_stripping.text, rows))
        codes, symbols = predictor.encoding.encode_and_measure(composed)
        shares = predictor.probabilities(predictor.logits(codes))
        known = predictor.without_values(predictor.count_known(codes), composed) > 0
        answers = (np.argmax(shares, axis=1)[:, None] == np.arange(shares.shape[1])) & known[:, None]
        answers = answers if thresholds is None else shares >= thresholds
        most, lengths = shares.max(axis=1).clip(max=1), np.array(list(map(len, texts)))
        found: dict[Any, Any] = {("class", name): (each, ones) for name, each in zip(predictor.classes, answers.T)}
        found["probability", MEAN] = most * known, known
        if least := predictor.calibration.min_probability:
            found["probability", f"below {percent(least)}"] = (most < least) & known, known
        for number in range(BINS):
            found[HISTOGRAM, f"from {number / BINS:.0%}"] = np.minimum(most * BINS // 1, BINS - 1) == number, ones
        found[text, "unknown characters"] = tuple(zip(*map(predictor.encoding.count_unknown, texts)))
        if isinstance(self._table, NGramConfig):
            ngrams, counts = hash_documents(codes, self._table)
            is_used = np.arange(ngrams.shape[1]) < counts[:, None]
            found[text, "n-grams and words that are new"] = (self._is_new[ngrams] & is_used).sum(axis=1), counts
        found[text, "no known character" if thresholds is None else "no label"] = ~answers.any(axis=1), ones
        found[text, f"at most {pluralize(self._short, 'character')}"] = lengths <= self._short, ones
        found[text, f"at least {pluralize(self._long, 'character')}"] = lengths >= self._long, ones
        found[text, "longer than the network reads"] = symbols > predictor.encoding.feature_len, ones
        for column, values in zip(beside, columns):
            group, numbers = f"column {column.name}", np.array(list(map(column.value_index, values)), np.float64)
            found[group, "(never seen in training)"] = np.isnan(numbers), ones
            found[group, "(missing)"] = numbers == 0, ones
            for number in range(1, min(column.size, 1 + MAX_VALUES)):  # the most frequent categories come first
                found[group, column.describe_value(number)] = numbers == number, ones
        return found


def compare_proportions(old: ProportionTable, new: ProportionTable, least: float) -> ProportionTable:
    """Compare shares by their sums, a row for each; those that are zero in both are left out.

    ``low`` to ``high`` is the 95 % interval of the difference, made of Wilson's of both shares (Newcombe 1998, method
    10). ``effect`` is the difference of the angles. It is a change if it is at least ``least``, and if chance makes one
    of all figures as large with a probability of at most ``FALSE_ALARMS`` (Bonferroni's correction).
    """
    old, new = (each[(old["whole"] > 0) & (new["whole"] > 0) & (old["part"] + new["part"] > 0)] for each in (old, new))
    per_unit = _effective_sample_size(old + new) / (old + new)["whole"]
    then, now = (each["part"] / each["whole"] for each in (old, new))
    sizes = [np.minimum(_effective_sample_size(each), per_unit * each["whole"]) for each in (old, new)]
    parts = [then * sizes[0], now * sizes[1]]
    # With the correction for few draws of Anscombe 1948, doi:10.1093/biomet/35.3-4.246.
    angles = [2 * np.arcsin(np.sqrt((part + 3 / 8) / (size + 3 / 4))) for part, size in zip(parts, sizes)]
    (low, high), (new_low, new_high) = (interval(part, size) for part, size in zip(parts, sizes))
    table = pd.DataFrame({"then": then, "now": now})
    table["low"] = now - then - np.hypot(now - new_low, high - then)
    table["high"] = now - then + np.hypot(new_high - now, then - low)
    table["effect"] = angles[1] - angles[0]
    judged = table.index.get_level_values(0) != HISTOGRAM
    noise = critical_value(judged.sum()) * np.sqrt(1 / sizes[0] + 1 / sizes[1])
    table["changed"] = judged & (table["effect"].abs() >= np.maximum(noise, least))
    return table.rename_axis(["group", "name"]).reset_index()


def _effective_sample_size(sums: ProportionTable) -> Any:
    """Return the number of independent draws whose share has the variance of each."""
    share = sums["part"] / sums["whole"]
    squares = sums["aa"] - 2 * share * sums["ab"] + share**2 * sums["bb"]
    return (share * (1 - share) * sums["whole"] ** 2 / squares).where(squares > 1e-9 * sums["bb"], sums["texts"])


def critical_value(figures: int) -> float:
    """Return the standard deviations from which on one of so many figures has changed."""
    return NormalDist().inv_cdf(1 - FALSE_ALARMS / (2 * max(1, figures)))
