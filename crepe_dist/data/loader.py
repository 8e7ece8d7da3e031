"""Rows of a part → batches for one rank. Rank and size arrive as two ints, so any rank can be tried in one process.

The order of an epoch is one permutation of all rows, a function of (seed, epoch) alone. Global batch k is its k-th
stretch of ``batch_size`` rows, and each rank takes a share of it; the shares differ by at most one row. A position is
therefore (epoch, documents consumed globally), whatever the number of ranks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import mxnet as mx
import numpy as np
import numpy.typing as npt
from mxnet import gluon

from crepe_dist.data.alphabet import BLANK
from crepe_dist.data.dataset import Part

Order = npt.NDArray[np.int64]
PREFETCH = 4


@dataclass(frozen=True)
class Batch:
    """One rank's share of a global batch, filled up with blank rows of weight 0 to the same shape in every step.

    Attributes:
        codes: uint8 [B, L] NDArray in host memory; B is the largest share of a full batch.
        labels: int32 [B] NDArray.
        weights: float32 [B] NDArray, 1 for a document, 0 for filling.
        documents: real rows in the global batch, over all ranks.
    """

    codes: mx.nd.NDArray
    labels: mx.nd.NDArray
    weights: mx.nd.NDArray
    documents: int


def epoch_order(rows: int, seed: int, epoch: int) -> Order:
    """The order of all rows in one epoch, int64 [rows]; the same on every rank."""
    return np.random.default_rng([seed, epoch]).permutation(rows)


def share(start: int, stop: int, rank: int, size: int) -> tuple[int, int]:
    """Rank's part of [start, stop): contiguous, disjoint, complete, sizes differ by at most one."""
    count, extra = divmod(stop - start, size)
    first = start + rank * count + min(rank, extra)
    return first, first + count + (rank < extra)


class RankBatches:
    """One rank's share of every global batch from ``first`` on: a batch sampler of one index array a batch."""

    def __init__(self, order: Order, batch_size: int, rank: int, size: int, first: int = 0) -> None:
        self._order = order
        self._batch_size = batch_size
        self._rank = rank
        self._size = size
        self.starts = range(first, len(order), batch_size)

    def __len__(self) -> int:
        return len(self.starts)

    def __iter__(self) -> Iterator[list[tuple[Order, int]]]:
        for start in self.starts:
            stop = min(start + self._batch_size, len(self._order))
            mine = self._order[slice(*share(start, stop, self._rank, self._size))]
            yield [(mine, stop - start)]


class _Rows:
    """A Gluon data set whose item is a whole batch: one gather from the memory map."""

    def __init__(self, part: Part, rows: int) -> None:
        self._part = part
        self._rows = rows

    def __len__(self) -> int:
        return len(self._part)

    def __getitem__(self, item: tuple[Order, int]) -> Batch:
        indices, documents = item
        codes = np.full((self._rows, self._part.shards[0].shape[1]), BLANK, dtype=np.uint8)
        labels = np.zeros(self._rows, dtype=np.int32)
        weights = np.zeros(self._rows, dtype=np.float32)
        codes[: len(indices)] = self._part.codes(indices)
        labels[: len(indices)] = self._part.labels[indices]
        weights[: len(indices)] = 1
        return Batch(
            mx.nd.array(codes, dtype="uint8"),
            mx.nd.array(labels, dtype="int32"),
            mx.nd.array(weights, dtype="float32"),
            documents,
        )


def batches(part: Part, order: Order, batch_size: int, rank: int, size: int, first: int = 0) -> Iterator[Batch]:
    """This rank's share of each global batch, read ahead by a thread.

    Args:
        order: rows of ``part`` in the order in which they are wanted.
        batch_size: documents in a global batch.
        first: documents of ``order`` that were consumed before, over all ranks.
    """
    sampler = RankBatches(order, batch_size, rank, size, first)
    # A thread and not a process: forked workers after hvd.init() are a known source of hangs, and a batch is one
    # gather in C that lets the other threads run.
    loader: Any = gluon.data.DataLoader(
        _Rows(part, -(-batch_size // size)),
        batch_sampler=sampler,
        batchify_fn=_only,
        num_workers=1,
        thread_pool=True,
        prefetch=PREFETCH,
    )
    yield from loader


def _only(items: list[Batch]) -> Batch:
    (item,) = items
    return item
