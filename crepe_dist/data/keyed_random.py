"""Counter-based random numbers: a pure function of their keys, independent of the order of draws."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Numbers = npt.NDArray[np.uint64]


def mix(state: Numbers) -> Numbers:
    """Hash uint64 numbers into pseudo-random ones with SplitMix64 (Steele, Lea & Flood, OOPSLA 2014)."""
    z = state * np.uint64(0x9E3779B97F4A7C15) + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(z ^ (z >> np.uint64(31)))
