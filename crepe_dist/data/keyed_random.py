"""Counter-based random numbers: a pure function of their keys, independent of the order of draws."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from crepe_dist.native import constants

Numbers = npt.NDArray[np.uint64]

GOLDEN = np.uint64(constants.GOLDEN)


def scramble(state: Numbers) -> Numbers:
    """Hash uint64 numbers with the output function of SplitMix64 (Steele, Lea & Flood, OOPSLA 2014)."""
    z = (state ^ (state >> np.uint64(30))) * np.uint64(constants.MULTIPLIER1)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(constants.MULTIPLIER2)
    return np.asarray(z ^ (z >> np.uint64(31)))


def mix(state: Numbers) -> Numbers:
    """Hash uint64 numbers into pseudo-random ones: the first output of SplitMix64 from each state."""
    return scramble(state * GOLDEN + GOLDEN)


def row_keys(seed: int, epoch: int, rows: npt.NDArray[np.int64]) -> Numbers:
    """Return a key for each row in an epoch of a run, uint64 [rows]."""
    state = mix(np.array([seed], np.uint64))
    state = mix(state + np.uint64(epoch))
    return mix(state + rows.astype(np.uint64))


def is_drawn(rate: float | npt.NDArray[np.float64], numbers: Numbers) -> npt.NDArray[np.bool_]:
    """Choose from random numbers each with probability ``rate``; at a higher rate, the same ones and others."""
    return np.asarray(numbers >> np.uint64(11) < np.asarray(rate * (1 << 53)).astype(np.uint64))
