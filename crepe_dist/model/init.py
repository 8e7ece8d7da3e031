"""Initial values of parameters. The values are the same on every machine."""

import math

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
CHUNK = 1 << 16  # Number of random numbers that are drawn at a time.


def zeros(*shape: int) -> Floats:
    """Return an array of zeros, float32."""
    return np.zeros(shape, np.float32)


def normal(generator: np.random.Generator, shape: tuple[int, ...], deviation: float) -> Floats:
    """Draw normally distributed numbers, float32.

    Machines may compute the last bits of the float64 numbers differently. Rounding to float32 removes the difference.
    """
    numbers = np.empty(math.prod(shape), np.float32)
    for start in range(0, len(numbers), CHUNK):
        chunk = numbers[start : start + CHUNK]
        chunk[:] = deviation * generator.standard_normal(len(chunk))
    return numbers.reshape(shape)


def uniform(generator: np.random.Generator, shape: tuple[int, ...], largest: float) -> Floats:
    """Draw uniformly distributed numbers between ``-largest`` and ``largest``, float32."""
    return (largest * (2 * generator.random(shape) - 1)).astype(np.float32)


def kaiming_normal(generator: np.random.Generator, shape: tuple[int, ...]) -> Floats:
    """Draw the weight of a layer that a ReLU follows. The variance is 2 / fan-in (He et al. 2015, arXiv:1502.01852).

    Args:
        shape: Number of outputs, number of inputs and, for a convolution, the kernel size.
    """
    return normal(generator, shape, math.sqrt(2 / math.prod(shape[1:])))
