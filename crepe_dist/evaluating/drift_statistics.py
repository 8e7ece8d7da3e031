"""Proportions that show whether new texts differ from the texts of the test split.

Every proportion is the ratio of two sums over texts, a part and a whole. One example is the number of predictions of a
class, divided by the number of all texts. Another is the number of unknown characters, divided by the number of all
characters. The sampling unit is the text, or the group of texts if the test split has groups. Proportions p are
compared by their angles 2·arcsin(√p). The variance of an angle hardly depends on p, so rare classes do not cause false
alarms. The difference between two angles is Cohen's h.
"""

from statistics import NormalDist
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from crepe_dist.data.arrays import hash_texts
from crepe_dist.formatting import percent, pluralize
from crepe_dist.networks.ngrams.config import NGramConfig
from crepe_dist.networks.ngrams.hashing import hash_documents
from crepe_dist.predicting.predictor import Predictor
from crepe_dist.reports.score_page import interval
from crepe_dist.runs.group_bootstrap import student_quantile

# Nominal probability that at least one proportion causes a false alarm. For 100 texts, the actual probability is 0.04,
# because the distributions are skewed.
FALSE_ALARM_PROB = 0.03
TAIL = 10  # The shortest 1 / TAIL of the test texts are considered short, and the longest 1 / TAIL long.
BATCH_SIZE = 256  # Number of texts in a batch.
BINS = 10  # Number of bins of the histogram of probabilities. The histogram is drawn, but not tested for drift.
HISTOGRAM, MEAN = "histogram", "mean of the most probable class"
ProportionTable = Any  # Data frame of pandas with one row per proportion.


def find_new_texts(texts: list[str], seen_hashes: npt.NDArray[np.uint64]) -> list[int]:
    """Return the numbers of the texts whose hashes are not in ``seen_hashes``.

    Repeated texts are not independent evidence, so only the number of the first one is returned.
    """
    hashes, first = np.unique(hash_texts(text.encode("utf-8", "surrogatepass") for text in texts), return_index=True)
    return list(np.sort(first[~np.isin(hashes, seen_hashes)]).tolist())


class DriftStatistics:
    """Calculator of the sums over texts that the proportions are computed from.

    Args:
        predictor: Model.
        texts: Texts of the test split, as data sets store them. Their lengths define which texts are short and long.
    """

    def __init__(self, predictor: Predictor, texts: list[str]) -> None:
        lengths, shape = sorted(map(len, texts)), predictor.engine.config
        self._short, self._long = lengths[len(lengths) // TAIL], lengths[-1 - len(lengths) // TAIL]
        self._predictor, self._table = predictor, getattr(shape, "ngram_config", shape)
        if isinstance(self._table, NGramConfig):
            # A row of the n-gram table is initially zero, and changes with the first training document that uses it.
            # Therefore, no training document has used a row of zeros.
            self._is_new = ~predictor.engine.arrays[shape.sparse_parameters[0]].any(axis=1)

    def sums(self, texts: list[str], groups: npt.NDArray[np.integer[Any]] | None = None) -> ProportionTable:
        """Return a table with one row per proportion.

        Five columns are sums over the sampling units: of the part, the whole, the squared part (``aa``), the product of
        part and whole (``ab``), and the squared whole (``bb``). The last column is the number of units (``texts``).

        Args:
            groups: Groups of the texts, which are the sampling units, int [texts]. ``None``: each text is a unit.
        """
        total: Any = 0
        units = None if groups is None else np.unique(groups, return_inverse=True)[1]
        for start in range(0, len(texts), BATCH_SIZE):
            proportions = self.parts_and_wholes(texts[start : start + BATCH_SIZE])
            values = np.array(list(proportions.values()), np.float64).transpose(1, 0, 2)
            if units is None:
                total = total + sum_terms(*values)
            else:
                total = np.zeros((units.max() + 1, *values.shape[:2])) if start == 0 else total
                np.add.at(total, units[start : start + BATCH_SIZE], values.transpose(2, 0, 1))
        columns = ["part", "whole", "aa", "ab", "bb", "texts"]
        total = total if units is None else sum_terms(*total.transpose(1, 2, 0))
        return pd.DataFrame(total.T, pd.MultiIndex.from_tuples(proportions), columns)

    def parts_and_wholes(self, texts: list[str]) -> dict[tuple[str, str], tuple[Any, Any]]:
        """Return the part and the whole of each text for each proportion. The keys are (group, name)."""
        predictor, ones, text = self._predictor, np.ones(len(texts)), "text"
        thresholds = predictor.thresholds
        char_ids, num_ids = predictor.encoding.encode_and_measure(texts)
        probabilities = predictor.probabilities(predictor.logits(char_ids))
        known = predictor.count_known(char_ids) > 0
        if thresholds is None:
            best = np.argmax(probabilities, axis=1)
            predicted = (best[:, None] == np.arange(probabilities.shape[1])) & known[:, None]
        else:
            predicted = probabilities >= thresholds
        highest, lengths = probabilities.max(axis=1).clip(max=1), np.array(list(map(len, texts)))
        result: dict[Any, Any] = {("class", name): (mask, ones) for name, mask in zip(predictor.classes, predicted.T)}
        result["probability", MEAN] = highest * known, known
        if threshold := predictor.calibration.min_probability:
            result["probability", f"below {percent(threshold)}"] = (highest < threshold) & known, known
        for number in range(BINS):
            result[HISTOGRAM, f"from {number / BINS:.0%}"] = np.minimum(highest * BINS // 1, BINS - 1) == number, ones
        result[text, "unknown characters"] = tuple(zip(*map(predictor.encoding.count_unknown, texts)))
        if isinstance(self._table, NGramConfig):
            ngrams, counts = hash_documents(char_ids, self._table)
            is_used = np.arange(ngrams.shape[1]) < counts[:, None]
            result[text, "n-grams and words that are new"] = (self._is_new[ngrams] & is_used).sum(axis=1), counts
        result[text, "no known character" if thresholds is None else "no label"] = ~predicted.any(axis=1), ones
        result[text, f"at most {pluralize(self._short, 'character')}"] = lengths <= self._short, ones
        result[text, f"at least {pluralize(self._long, 'character')}"] = lengths >= self._long, ones
        result[text, "longer than the network reads"] = num_ids > predictor.encoding.feature_len, ones
        return result


def sum_terms(parts: Any, wholes: Any) -> Any:
    """Return the columns of ``DriftStatistics.sums``, float64 [6, proportions]. The last axis is summed."""
    terms = parts, wholes, parts * parts, parts * wholes, wholes * wholes, np.ones_like(parts)
    return np.array([term.sum(axis=1) for term in terms])


def compare_proportions(
    reference: ProportionTable, current: ProportionTable, min_effect: float, num_groups: float | None = None
) -> ProportionTable:
    """Compare the proportions of the test split with the proportions of the new texts.

    A proportion is skipped if its part is zero in both sets of texts, or if its whole is zero in one of them.

    Args:
        reference: Sums over the texts of the test split.
        current: Sums over the new texts.
        min_effect: Minimum absolute effect of a change.
        num_groups: Effective number of groups of the test split. ``None``: its texts have no groups.

    Returns:
        A table. ``then`` and ``now`` are the proportions. ``low`` to ``high`` is the 95 % interval of their difference,
        computed from Wilson's intervals of both proportions (Newcombe 1998, method 10). ``effect`` is the difference
        between the angles. ``changed`` is true if the absolute effect is at least ``min_effect`` and significant. With
        Bonferroni's correction, the probability that chance makes any proportion significant is at most
        ``FALSE_ALARM_PROB``.
    """
    is_compared = (reference["whole"] > 0) & (current["whole"] > 0) & (reference["part"] + current["part"] > 0)
    reference, current = reference[is_compared], current[is_compared]
    basis = reference + current if num_groups is None else reference
    per_unit = effective_sample_size(basis) / basis["whole"]
    then, now = (sums["part"] / sums["whole"] for sums in (reference, current))
    sizes = [np.minimum(effective_sample_size(sums), per_unit * sums["whole"]) for sums in (reference, current)]
    parts = [then * sizes[0], now * sizes[1]]
    # The constants 3/8 and 3/4 correct for small samples (Anscombe 1948, doi:10.1093/biomet/35.3-4.246).
    angles = [2 * np.arcsin(np.sqrt((part + 3 / 8) / (size + 3 / 4))) for part, size in zip(parts, sizes)]
    (low, high), (new_low, new_high) = (interval(part, size) for part, size in zip(parts, sizes))
    table = pd.DataFrame({"then": then, "now": now})
    table["low"] = now - then - np.hypot(now - new_low, high - then)
    table["high"] = now - then + np.hypot(new_high - now, then - low)
    table["effect"] = angles[1] - angles[0]
    is_tested = table.index.get_level_values(0) != HISTOGRAM
    noise = critical_value(is_tested.sum(), num_groups) * np.sqrt(1 / sizes[0] + 1 / sizes[1])
    table["changed"] = is_tested & (table["effect"].abs() >= np.maximum(noise, min_effect))
    return table.rename_axis(["group", "name"]).reset_index()


def effective_sample_size(sums: ProportionTable) -> Any:
    """Return the effective sample sizes of proportions.

    The effective sample size is the number of independent draws whose binomial proportion has the same variance.
    """
    proportion = sums["part"] / sums["whole"]
    squares = sums["aa"] - 2 * proportion * sums["ab"] + proportion**2 * sums["bb"]
    sizes = proportion * (1 - proportion) * sums["whole"] ** 2 / squares
    # If the proportion is the same in all texts, the variance is zero, and the result is the number of texts.
    return sizes.where(squares > 1e-9 * sums["bb"], sums["texts"])


def effective_num_groups(groups: npt.NDArray[np.integer[Any]]) -> float:
    """Return the effective number of groups: the variance between so many equal groups is known as precisely.

    Large groups dominate the variance, so the result is small if a few groups have most of the texts (Satterthwaite
    1946, doi:10.2307/3002019).

    Args:
        groups: Groups of the texts, int [texts].
    """
    squares = np.unique(groups, return_counts=True)[1].astype(np.float64) ** 2
    return float(squares.sum() ** 2 / (squares**2).sum())


def critical_value(num_tests: int, num_groups: float | None = None) -> float:
    """Return the critical value of ``num_tests`` two-sided tests, with Bonferroni's correction.

    The variance between few groups is known only roughly. With groups, the value is therefore a quantile of Student's
    distribution instead of the normal distribution.

    Args:
        num_groups: Effective number of groups. ``None``: the texts have no groups.
    """
    quantile = NormalDist().inv_cdf(1 - FALSE_ALARM_PROB / (2 * max(1, num_tests)))
    return quantile if num_groups is None else student_quantile(quantile, max(1.0, num_groups - 1))
