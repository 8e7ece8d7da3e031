"""Batches for one rank. Rank and world size are plain ints, so a single process can test any rank.

Each epoch visits the rows in one permutation, a function of (seed, epoch). Global batch k is the k-th run of
``batch_size`` rows, reordered so that shares take about the same time, and divided among the ranks in shares that
differ by few rows. A position in training is therefore (epoch, documents consumed globally), for any number of ranks.
"""

from __future__ import annotations

import itertools
import queue
import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from crepe_dist.data.batch import Batch, pack
from crepe_dist.data.dataset import Split
from crepe_dist.data.order import Order, balanced, epoch_order, largest_share, share

PREFETCH = 4

# Rows of a rank's share of a global batch, the number of documents of the batch, and where the share begins in it.
Share = tuple[Order, int, int]


def training_order(split: Split, seed: int, epoch: int, batch_size: int) -> Order:
    """Return the rows of a split in the order of an epoch's training, int64 [rows]; the same on every rank."""
    return balanced(epoch_order(len(split), seed, epoch), split.lengths(), batch_size)


class RankBatches:
    """Batch sampler for one rank: its row numbers in every global batch from ``first`` on."""

    def __init__(
        self, order: Order, batch_size: int, rank: int, size: int, first: int = 0, group_size: int = 1
    ) -> None:
        self._order = order
        self._batch_size = batch_size
        self._rank = rank
        self._size = size
        self._group_size = group_size
        self.starts = range(first, len(order), batch_size)

    def __len__(self) -> int:
        return len(self.starts)

    def __iter__(self) -> Iterator[Share]:
        for start in self.starts:
            stop = min(start + self._batch_size, len(self._order))
            begin, end = share(start, stop, self._rank, self._size, self._group_size)
            yield self._order[begin:end], stop - start, begin - start


def batches(
    split: Split,
    order: Order,
    batch_size: int,
    rank: int,
    size: int,
    first: int = 0,
    group_size: int = 1,
) -> Iterator[Batch]:
    """Yield this rank's share of each global batch; a thread prefetches them.

    Args:
        order: its row numbers in the order of the epoch, int64 [rows].
        batch_size: documents per global batch.
        first: number of documents of ``order`` already consumed by all ranks, when a run is resumed.
        group_size: number of documents that one rank has to compute together, see ``Engine.group_size``.
    """
    sampler = RankBatches(order, batch_size, rank, size, first, group_size)
    yield from DataLoader(split, sampler, largest_share(batch_size, size, group_size))


class DataLoader:
    """Loader of a rank's batches, which a thread gathers from the memory map ahead of their use.

    Processes forked after ``hvd.init()`` are known to hang, and a pool of threads makes semaphores in /dev/shm, which
    may be full. The gather in C releases the GIL.

    Args:
        sampler: rows of each batch.
        rows: number of rows of a padded batch.
    """

    def __init__(self, split: Split, sampler: RankBatches, rows: int) -> None:
        self._split = split
        self._sampler = sampler
        self._rows = rows

    def __iter__(self) -> Iterator[Batch]:
        """Gather batches in another thread, at most 2 × ``PREFETCH`` of them ahead."""
        ready: queue.SimpleQueue[tuple[str, list[Any]]] = queue.SimpleQueue()
        # True allows another PREFETCH batches, because waking the thread for each one takes time; False stops it.
        room: queue.SimpleQueue[bool] = queue.SimpleQueue()
        room.put(True)

        def fetch() -> None:
            try:
                for number, item in enumerate(self._sampler, 1):
                    ready.put(("item", [self._gather(item)]))
                    if number % PREFETCH == 0 and not room.get():
                        return
                ready.put(("end", []))
            except BaseException as error:
                ready.put(("error", [error]))

        thread = threading.Thread(target=fetch, name="batches", daemon=True)
        thread.start()
        try:
            for number in itertools.count(1):
                kind, content = ready.get()
                if kind == "end":
                    return
                if kind == "error":
                    raise content.pop()
                if number % PREFETCH == 0:
                    room.put(True)
                yield content.pop()  # keep no reference here: freeing a batch takes longer than getting the next one
        finally:
            room.put(False)
            thread.join()

    def _gather(self, item: Share) -> Batch:
        rows, documents, first = item
        split = self._split
        labels, weights = np.asarray(split.labels[rows]), split.weight_bytes(rows)
        batch = pack(split.codes(rows), labels, self._rows, documents, first, weights, split.targets.bytes(rows))
        return replace(batch, rows=rows)
