"""Order of the rows in an epoch, and the ranks' shares of them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Order = npt.NDArray[np.int64]
RUN = 8  # a multiple of the networks' group sizes


def epoch_order(rows: int, seed: int, epoch: int) -> Order:
    """Return the permutation of all rows for one epoch, int64 [rows]; the same on every rank."""
    return np.random.default_rng([seed, epoch]).permutation(rows)


def balanced(order: Order, lengths: npt.NDArray[np.int64], batch_size: int) -> Order:
    """Reorder the rows within each global batch so that contiguous shares of it have about the same length.

    The rows of a batch are sorted by length, and dealt like cards to runs of ``RUN`` rows.

    Args:
        lengths: length of each row of the split.
    """
    whole = len(order) // batch_size * batch_size
    parts = order[:whole].reshape(-1, batch_size), order[None, whole:]
    return np.concatenate([_dealt(batches, lengths).ravel() for batches in parts])


def _dealt(batches: Order, lengths: npt.NDArray[np.int64]) -> Order:
    count = batches.shape[1]
    cards = np.arange(-(-count // RUN) * RUN).reshape(RUN, -1)
    cards[1::2] = cards[1::2, ::-1]  # to and fro
    cards[:, 1::2] = cards[:, 1::2][:, ::-1]  # the first runs have more of the longest rows
    runs = cards.T.ravel()
    by_length = np.argsort(lengths[batches], axis=1, kind="stable")
    return np.take_along_axis(batches, by_length[:, runs[runs < count]], axis=1)


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
