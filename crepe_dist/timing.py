"""Rates of several things on a shared machine: measured in turns, so that a slow moment hits all of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from typing import Callable


def alternate(runs: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, float]:
    """Calls each of ``runs``, which returns a rate, ``rounds`` times in turns; the median rate of each."""
    return {name: statistics.median(rates) for name, rates in in_turns(runs, rounds).items()}


def in_turns(runs: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Calls each of ``runs``, which returns a rate, ``rounds`` times in turns; the rates of each, round by round.

    One round more comes first and is not counted: it compiles, allocates and fills caches.
    """
    found: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(rounds + 1):
        for name, run in runs.items():
            rate = run()
            if turn > 0:
                found[name].append(rate)
    return found


def paired(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """The median over the rounds of ours / theirs; steadier than that of medians if all rates rise and fall at once."""
    return statistics.median(mine / other for mine, other in zip(ours, theirs))


def rate(work: Callable[[], int], seconds: float) -> float:
    """Units a second of a ``work`` that returns how many it did, repeated for ``seconds``."""
    done = 0
    start = time.perf_counter()
    while True:
        done += work()
        passed = time.perf_counter() - start
        if passed >= seconds:
            return done / passed
