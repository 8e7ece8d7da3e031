"""Dropout masks as a pure function of (seed, place in the global batch), the same for every engine and world size."""

from __future__ import annotations

import math

import numpy as np

from crepe_dist.data.alphabet import Codes
from crepe_dist.data.keyed_random import GOLDEN, scramble

UNITS = 4  # of a hash, which has 16 bits for each of them


def kept(probability: float, seed: int, first: int, shape: tuple[int, ...]) -> Codes:
    """Draw the units that dropout keeps; equivalent to ``Dropout`` in native/engine.h.

    Args:
        probability: probability of dropping a unit, 0 to below 1; it is raised to a multiple of 2**-16.
        seed: random seed of the step, uint64.
        first: position of the first document in the global batch.
        shape: documents, and the shape of each document's mask.

    Returns:
        1 for units to keep, 0 for others, uint8 [*shape].
    """
    start, count = first * math.prod(shape[1:]), math.prod(shape)
    numbers = np.arange(start // UNITS + 1, (start + count - 1) // UNITS + 2, dtype=np.uint64)
    bits = scramble(np.uint64(seed) + numbers * GOLDEN).astype("<u8").view("<u2")[start % UNITS :][:count]
    return (bits >= math.ceil(probability * 2**16)).astype(np.uint8).reshape(shape)
