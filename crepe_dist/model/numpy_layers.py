"""Layers in NumPy. Activations are [n, positions, channels], so that a convolution is a sum of matrix products."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]


def convolved(x: Floats, weight: Floats) -> Floats:
    """Convolve [n, positions, channels] with a weight [filters, channels, kernel], without padding and bias."""
    kernel = weight.shape[2]
    positions = x.shape[1] - kernel + 1
    return total([x[:, tap : tap + positions] @ weight[:, :, tap].T for tap in range(kernel)])


def total(terms: list[Floats]) -> Floats:
    """Add arrays up, from the first to the last."""
    result = terms[0]
    for term in terms[1:]:
        np.add(result, term, out=result)
    return result


def pooled(x: Floats, size: int) -> Floats:
    """Return the maxima of ``size`` neighbouring positions each, which divides their number."""
    return np.asarray(x.reshape(len(x), x.shape[1] // size, size, *x.shape[2:]).max(axis=2))
