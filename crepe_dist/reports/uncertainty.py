"""How much of a measured share, or of a difference between two, may be chance."""

from __future__ import annotations

import math

Z = 1.959964  # of the normal distribution, for 95 %
MOST_EXACT = 2000  # documents; above, the normal distribution is exact enough


def interval(right: int, documents: int) -> tuple[float, float]:
    """Wilson's 95 % interval of the share ``right / documents`` (Wilson 1927, doi:10.1080/01621459.1927.10502953)."""
    if not documents:
        return 0.0, 1.0
    share, square = right / documents, Z * Z / documents
    centre = (share + square / 2) / (1 + square)
    half = Z * math.sqrt(share * (1 - share) / documents + square / (4 * documents)) / (1 + square)
    return max(0.0, centre - half), min(1.0, centre + half)


def mcnemar(only_first: int, only_second: int) -> float:
    """Two-sided p-value of McNemar's test on documents that one of two models alone gets right.

    Exact (binomial) up to ``MOST_EXACT`` of them, else by the normal distribution with Edwards's correction.
    """
    differing = only_first + only_second
    if not differing:
        return 1.0
    fewer = min(only_first, only_second)
    if differing <= MOST_EXACT:
        return min(1.0, 2 * sum(math.comb(differing, k) for k in range(fewer + 1)) / (1 << differing))
    distance = max(0, abs(only_first - only_second) - 1) / math.sqrt(differing)
    return math.erfc(distance / math.sqrt(2))


def paired_interval(only_first: int, only_second: int, documents: int) -> tuple[float, float]:
    """Wald's 95 % interval of the difference of two accuracies (second - first) on the same documents."""
    difference = (only_second - only_first) / documents
    variance = (only_first + only_second) / documents - difference**2
    half = Z * math.sqrt(max(variance, 0.0) / documents)
    return difference - half, difference + half
