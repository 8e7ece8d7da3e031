"""Random numbers as a function of keys, the same whoever draws them and in whatever order."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Numbers = npt.NDArray[np.uint64]


def mix(state: Numbers) -> Numbers:
    """Turn any numbers into random ones, uint64, by SplitMix64's function (Steele, Lea & Flood, OOPSLA 2014)."""
    z = state * np.uint64(0x9E3779B97F4A7C15) + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(z ^ (z >> np.uint64(31)))
