"""Batches for one rank. Rank and world size are plain ints, so a single process can test any rank.

Each epoch visits the rows in one permutation, a function of (seed, epoch). Global batch k is the k-th run of
``batch_size`` rows, reordered so that shares take about the same time, and divided among the ranks in shares that
differ by few rows. A position in training is therefore (epoch, documents consumed globally), for any number of ranks.
"""

from __future__ import annotations

import itertools
import queue
import threading
from collections.abc import Callable, Iterable, Iterator
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


Prepare = Callable[[Batch], Batch]


class _BatchDataset:
    """Data set whose item is a whole batch, gathered from the memory map at once."""

    def __init__(self, split: Split, rows: int, prepare: Prepare) -> None:
        self._part = split
        self._rows = rows
        self._prepare = prepare

    def __getitem__(self, item: Share) -> Batch:
        indices, documents, first = item
        split = self._part
        labels = np.asarray(split.labels[indices])
        pairs = None if split.targets is None else split.targets.bytes(indices)
        weights = split.weight_bytes(indices)
        batch = pack(split.codes(indices), labels, self._rows, documents, first, weights, pairs)
        return self._prepare(replace(batch, rows=indices))


def as_it_is(batch: Batch) -> Batch:
    """Return the batch: the default for networks that only read ``packed``."""
    return batch


def batches(
    split: Split,
    order: Order,
    batch_size: int,
    rank: int,
    size: int,
    first: int = 0,
    prepare: Prepare = as_it_is,
    group_size: int = 1,
) -> Iterator[Batch]:
    """Yield this rank's share of each global batch; a thread prefetches them.

    Args:
        order: its row numbers in the order of the epoch, int64 [rows].
        batch_size: documents per global batch.
        first: number of documents of ``order`` already consumed by all ranks, when a run is resumed.
        prepare: adds what the network needs besides ``packed``, in the thread that reads the batches.
        group_size: number of documents that one rank has to compute together, see ``Engine.group_size``.
    """
    sampler = RankBatches(order, batch_size, rank, size, first, group_size)
    yield from DataLoader(_BatchDataset(split, largest_share(batch_size, size, group_size), prepare), sampler)


class DataLoader:
    """Loader that reads a sampler's items of a data set ahead, in a thread.

    Processes forked after ``hvd.init()`` are known to hang, and a pool of threads makes semaphores in /dev/shm, which
    may be full. The gather in C releases the GIL.
    """

    def __init__(self, dataset: _BatchDataset, sampler: RankBatches) -> None:
        self._dataset = dataset
        self._sampler = sampler

    def __iter__(self) -> Iterator[Batch]:
        return _ahead(map(self._dataset.__getitem__, self._sampler))


def _ahead(items: Iterable[Batch]) -> Iterator[Batch]:
    """Fetch items in another thread, at most 2 × ``PREFETCH`` of them ahead."""
    ready: queue.SimpleQueue[tuple[str, list[Any]]] = queue.SimpleQueue()
    # True allows another PREFETCH batches, because waking the thread for each one takes time; False stops it.
    room: queue.SimpleQueue[bool] = queue.SimpleQueue()
    room.put(True)

    def fetch() -> None:
        try:
            for number, item in enumerate(items, 1):
                ready.put(("item", [item]))
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
