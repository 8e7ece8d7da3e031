"""Values that parameters start with, the same on every machine."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
CHUNK = 1 << 16  # numbers drawn at a time


def zeros(*shape: int) -> Floats:
    """Return zeros, float32."""
    return np.zeros(shape, np.float32)


def normal(generator: np.random.Generator, shape: tuple[int, ...], deviation: float) -> Floats:
    """Draw normal numbers.

    Machines may compute their last bits in float64 differently, which rounding to float32 removes.
    """
    numbers = np.empty(math.prod(shape), np.float32)
    for start in range(0, len(numbers), CHUNK):
        chunk = numbers[start : start + CHUNK]
        chunk[:] = deviation * generator.standard_normal(len(chunk))
    return numbers.reshape(shape)


def uniform(generator: np.random.Generator, shape: tuple[int, ...], largest: float) -> Floats:
    """Draw numbers between ``-largest`` and ``largest``."""
    return (largest * (2 * generator.random(shape) - 1)).astype(np.float32)


def kaiming_normal(generator: np.random.Generator, shape: tuple[int, ...]) -> Floats:
    """Draw the weight of a layer with ReLU: variance 2 / inputs (He et al. 2015, arXiv:1502.01852).

    Args:
        shape: outputs, inputs, and the taps of a convolution.
    """
    return normal(generator, shape, math.sqrt(2 / math.prod(shape[1:])))
