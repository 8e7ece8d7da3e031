"""Confidence intervals and significance tests for accuracies."""

from __future__ import annotations

import math

Z = 1.959964  # 97.5 % quantile of the normal distribution
MAX_EXACT = 2000  # documents; above this, the normal approximation is good enough


def interval(right: int, documents: int) -> tuple[float, float]:
    """Compute Wilson's 95 % interval of ``right / documents`` (Wilson 1927, doi:10.1080/01621459.1927.10502953)."""
    if not documents:
        return 0.0, 1.0
    share, square = right / documents, Z * Z / documents
    centre = (share + square / 2) / (1 + square)
    half = Z * math.sqrt(share * (1 - share) / documents + square / (4 * documents)) / (1 + square)
    return max(0.0, centre - half), min(1.0, centre + half)


def mcnemar(only_first: int, only_second: int) -> float:
    """Compute McNemar's two-sided p-value from the numbers of documents that only one of two models gets right."""
    differing = only_first + only_second
    if not differing:
        return 1.0
    fewer = min(only_first, only_second)
    if differing <= MAX_EXACT:
        return min(1.0, 2 * sum(math.comb(differing, k) for k in range(fewer + 1)) / (1 << differing))
    distance = max(0, abs(only_first - only_second) - 1) / math.sqrt(differing)
    return math.erfc(distance / math.sqrt(2))


def paired_interval(only_first: int, only_second: int, documents: int) -> tuple[float, float]:
    """Compute Wald's 95 % interval of the difference (second - first) of two accuracies on the same documents."""
    difference = (only_second - only_first) / documents
    half = Z * standard_error(only_first, only_second, documents)
    return difference - half, difference + half


def standard_error(only_first: int, only_second: int, documents: int) -> float:
    """Compute the standard error of the difference of two accuracies on the same documents."""
    difference = (only_second - only_first) / documents
    variance = (only_first + only_second) / documents - difference**2
    return math.sqrt(max(variance, 0.0) / documents)
