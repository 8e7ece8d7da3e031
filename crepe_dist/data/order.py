"""Order of the rows in an epoch, and the ranks' shares of them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Order = npt.NDArray[np.int64]


def epoch_order(rows: int, seed: int, epoch: int) -> Order:
    """Return the permutation of all rows for one epoch, int64 [rows]; the same on every rank."""
    return np.random.default_rng([seed, epoch]).permutation(rows)


def share(start: int, stop: int, rank: int, size: int, group_size: int = 1) -> tuple[int, int]:
    """Return a rank's contiguous share of [start, stop).

    Shares are disjoint. They differ by less than two groups of ``group_size`` rows, and begin at the start of a group.
    """
    count, extra = divmod(-(-(stop - start) // group_size), size)
    first = rank * count + min(rank, extra)
    last = first + count + (rank < extra)
    return min(stop, start + first * group_size), min(stop, start + last * group_size)


def largest_share(rows: int, size: int, group_size: int = 1) -> int:
    """Return the number of rows of the largest share of ``rows`` rows."""
    first, last = share(0, rows, 0, size, group_size)
    return last - first
