"""Hashing of n-grams to the rows of a table; ``native/hashing.h`` is equivalent."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from crepe_dist.data.alphabet import Codes
from crepe_dist.data.keyed_random import scramble

RADIX = 257  # larger than any code + 1, so that n-grams of up to seven characters have distinct keys


def keys(
    codes: Codes, alphabet_size: int, longest: int
) -> Iterator[tuple[npt.NDArray[np.uint64], npt.NDArray[np.bool_]]]:
    """For n = 1 … longest, yield the keys of all n-grams, uint64 [B, L - n + 1], and the mask of those fully known."""
    digits, known = codes.astype(np.uint64) + np.uint64(1), codes < alphabet_size
    key, good = digits, known
    for n in range(longest):
        if n:
            key, good = key[:, :-1] * np.uint64(RADIX) + digits[:, n:], good[:, :-1] & known[:, n:]
        yield key, good


def rows_of(key: npt.NDArray[np.uint64], rows: int) -> npt.NDArray[np.int32]:
    """Map keys to rows: hash them and scale the upper 32 bits."""
    return ((scramble(key) >> np.uint64(32)) * np.uint64(rows) >> np.uint64(32)).astype(np.int32)
