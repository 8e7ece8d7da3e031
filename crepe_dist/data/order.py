"""Order of the rows in an epoch, and the ranks' shares of them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Order = npt.NDArray[np.int64]


def epoch_order(rows: int, seed: int, epoch: int) -> Order:
    """Return the permutation of all rows for one epoch, int64 [rows]; the same on every rank."""
    return np.random.default_rng([seed, epoch]).permutation(rows)


def share(start: int, stop: int, rank: int, size: int) -> tuple[int, int]:
    """Return a rank's contiguous share of [start, stop). Shares are disjoint and differ by at most one row."""
    count, extra = divmod(stop - start, size)
    first = start + rank * count + min(rank, extra)
    return first, first + count + (rank < extra)
