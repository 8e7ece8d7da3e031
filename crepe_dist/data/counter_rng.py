"""Counter-based random numbers. They are a pure function of their keys, so the order of draws does not matter."""

from typing import Any

import numpy as np
import numpy.typing as npt

from crepe_dist.native import constants

Numbers = npt.NDArray[np.uint64]

GOLDEN = np.uint64(constants.GOLDEN)  # Increment of SplitMix64: 2^64 divided by the golden ratio.


def splitmix64_finalize(state: Numbers) -> Numbers:
    """Hash uint64 numbers with the output function of SplitMix64 (Steele, Lea & Flood, OOPSLA 2014)."""
    z = (state ^ (state >> np.uint64(30))) * np.uint64(constants.MULTIPLIER1)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(constants.MULTIPLIER2)
    return np.asarray(z ^ (z >> np.uint64(31)))


def splitmix64(state: Numbers) -> Numbers:
    """Return the first output of SplitMix64 for each state, uint64."""
    return splitmix64_finalize(state * GOLDEN + GOLDEN)


def hash_random(seed: int, *keys: Any) -> Numbers:
    """Draw a random number, uint64, for each combination of keys. Keys are integers, or integer arrays that
    broadcast."""
    state = splitmix64(np.array([seed], np.uint64))
    for key in keys:
        state = splitmix64(state + np.asarray(key).astype(np.uint64))
    return state


def bernoulli(rate: float | npt.NDArray[np.float64], numbers: Numbers) -> npt.NDArray[np.bool_]:
    """Return a mask of hits. Each random number is a hit with probability ``rate``.

    A number that is a hit at one rate is also a hit at every higher rate.
    """
    return np.asarray(numbers >> np.uint64(11) < np.asarray(rate * (1 << 53)).astype(np.uint64))
