"""Throughput comparisons on a shared machine. The candidates take turns, so that other load affects all equally."""

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence


def alternate(runs: Mapping[str, Callable[[], float]], rounds: int, until: float = math.inf) -> dict[str, float]:
    """Call each of ``runs``, which return a rate, ``rounds`` times in turns; return the median rate of each."""
    return {name: statistics.median(rates) for name, rates in in_turns(runs, rounds, until).items()}


def in_turns(runs: Mapping[str, Callable[[], float]], rounds: int, until: float = math.inf) -> dict[str, list[float]]:
    """Call each of ``runs``, which return a rate, ``rounds`` times in turns; return the rates by round.

    An additional warm-up round comes first. Its rates are returned only if it is the only round, because no other round
    starts after the time ``until`` of ``time.monotonic``.
    """
    rates_by_name: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(rounds + 1):
        if turn > 0 and time.monotonic() > until:
            break
        for name, run in runs.items():
            rates_by_name[name].append(run())
    return {name: rates[1:] or rates for name, rates in rates_by_name.items()}


def paired(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Return the median over the rounds of ours / theirs.

    The median of ratios is steadier than the ratio of medians if all rates rise and fall together.
    """
    return statistics.median(mine / other for mine, other in zip(ours, theirs))


def rate(work: Callable[[], int], seconds: float) -> float:
    """Repeat ``work``, which returns the number of units done, for ``seconds``; return units per second."""
    done = 0
    start = time.perf_counter()
    while True:
        done += work()
        passed = time.perf_counter() - start
        if passed >= seconds:
            return done / passed
