"""Order of the rows in an epoch, the shards of the ranks, and the batches of one rank.

Rank and world size are plain ints, so a single process can test any rank. Each epoch visits the rows in one
permutation, a function of the seed and the epoch. The global batches are consecutive ranges of this permutation, whose
sizes are a function of the number of documents trained on so far (``batch_schedule.py``). The rows of a batch are
reordered so that all shards take about the same time, and divided among the ranks. Therefore the epoch and the number
of documents that the ranks together have consumed define a position in training, for any number of ranks.
"""

import itertools
import queue
import threading
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from crepe_dist.data.batch import Batch, RowIndices, pack_batch
from crepe_dist.data.batch_schedule import BatchRange, BatchSchedule
from crepe_dist.data.dataset import Split

PREFETCH = 4  # Maximum number of batches that the thread gathers after each request of the consumer.
# Number of consecutive rows that are dealt to the same shard. It is a multiple of every network's ``reduction_group``.
DEAL_SIZE = 8
PIECE = 1 << 16  # Number of rows that are ordered at a time.


def training_order(split: Split, seed: int, epoch: int, schedule: BatchSchedule) -> RowIndices:
    """Return the rows of a split in the training order of an epoch, int64 [rows]; equal on every rank.

    Args:
        epoch: Number of earlier epochs.
    """
    order, lengths = epoch_order(len(split), seed, epoch), split.lengths()
    ranges = schedule.ranges(len(split), epoch)
    for batch_size, equal_ranges in itertools.groupby(ranges, lambda batch_range: batch_range[1] - batch_range[0]):
        starts = [start for start, _ in equal_ranges]
        rows = slice(starts[0], starts[-1] + batch_size)
        order[rows] = length_balanced_order(order[rows], lengths, batch_size)
    return order


def epoch_order(rows: int, seed: int, epoch: int) -> RowIndices:
    """Return the permutation of all rows for one epoch, int64 [rows]; equal on every rank."""
    return np.random.default_rng([seed, epoch]).permutation(rows)


def length_balanced_order(order: RowIndices, lengths: npt.NDArray[np.uint16], batch_size: int) -> RowIndices:
    """Reorder the rows within each global batch so that its contiguous shards have about the same total length.

    The rows of a batch are sorted by length, and dealt like cards to runs of ``DEAL_SIZE`` rows.

    Args:
        order: Row numbers in the order of the epoch. Their number is a multiple of ``batch_size``.
        lengths: Length of each row of the split.
    """
    # Ordering in pieces limits the memory for many millions of rows.
    piece_rows = max(1, PIECE // batch_size) * batch_size
    result = order.copy()
    for start in range(0, len(order), piece_rows):
        batches = result[start : start + piece_rows].reshape(-1, batch_size)
        batches[:] = _deal_by_length(batches, lengths)
    return result


def _deal_by_length(batches: RowIndices, lengths: npt.NDArray[np.uint16]) -> RowIndices:
    count = batches.shape[1]
    cards = np.arange(-(-count // DEAL_SIZE) * DEAL_SIZE).reshape(DEAL_SIZE, -1)
    # A row of `cards` is one round of dealing, and a column is a run. The direction alternates from round to round, so
    # that no run gets the longest text of every round.
    cards[1::2] = cards[1::2, ::-1]
    # The first runs still get longer texts than the last runs, and a shard consists of neighbouring runs. Therefore,
    # every other run is put in reverse order.
    cards[:, 1::2] = cards[:, 1::2][:, ::-1]
    runs = cards.T.ravel()
    by_length = np.argsort(lengths[batches], axis=1, kind="stable")
    return np.take_along_axis(batches, by_length[:, runs[runs < count]], axis=1)


def shard_range(start: int, stop: int, rank: int, size: int, group_size: int = 1) -> tuple[int, int]:
    """Return the contiguous range of rows within [start, stop) that a rank computes.

    The shards are disjoint. Their sizes differ by less than two groups of ``group_size`` rows, and each starts at a
    group boundary. The first shard is the largest.
    """
    count, extra = divmod(-(-(stop - start) // group_size), size)
    first = rank * count + min(rank, extra)
    last = first + count + (rank < extra)
    return min(stop, start + first * group_size), min(stop, start + last * group_size)


def max_shard_size(batch_size: int, size: int, group_size: int = 1) -> int:
    """Return the number of documents in the largest shard of a batch; equal on every rank."""
    return shard_range(0, batch_size, 0, size, group_size)[1]


def iter_shards(
    order: RowIndices, ranges: Iterable[BatchRange], rank: int, size: int, group_size: int = 1
) -> Iterator[tuple[RowIndices, int, int]]:
    """For each global batch, yield the rows of a rank, the number of documents in the batch, and the position of the
    rank's first row in the batch."""
    for start, stop in ranges:
        shard_start, shard_stop = shard_range(start, stop, rank, size, group_size)
        yield order[shard_start:shard_stop], stop - start, shard_start - start


def with_next(batches: Iterable[Batch]) -> Iterator[tuple[Batch, Batch | None]]:
    """Yield each batch together with the batch after it. The last batch has ``None``."""
    iterator = iter(batches)
    batch = next(iterator, None)
    while batch is not None:
        next_batch = next(iterator, None)
        yield batch, next_batch
        batch = next_batch


class DataLoader:
    """Iterator over a rank's shard of each global batch. A thread gathers the rows from the memory map ahead of their
    use.

    A thread is used instead of a process, because processes that are forked after ``hvd.init()`` are known to hang. A
    thread pool would create semaphores in /dev/shm, which may be full. The gather runs in C and releases the GIL.

    Args:
        order: Row numbers in the order of the epoch, int64 [rows].
        ranges: Ranges of ``order`` that the global batches contain; see ``batch_schedule.py``.
        group_size: Number of consecutive documents that one rank has to compute together; see
            ``NetworkConfig.reduction_group``.
    """

    def __init__(
        self,
        split: Split,
        order: RowIndices,
        ranges: Iterable[BatchRange],
        rank: int,
        size: int,
        group_size: int = 1,
    ) -> None:
        self._split = split
        self._shares = iter_shards(order, ranges, rank, size, group_size)
        self._size, self._group_size = size, group_size

    def __iter__(self) -> Iterator[Batch]:
        """Gather batches in another thread, at most 2 × ``PREFETCH`` of them ahead."""
        ready: queue.SimpleQueue[tuple[str, list[Any]]] = queue.SimpleQueue()
        # True allows the thread to gather another PREFETCH batches, because waking it for each batch takes time. False
        # stops it.
        permits: queue.SimpleQueue[bool] = queue.SimpleQueue()
        permits.put(True)

        def fetch() -> None:
            try:
                for number, (rows, documents, first) in enumerate(self._shares, 1):
                    ready.put(("item", [self._gather(rows, documents, first)]))
                    if number % PREFETCH == 0 and not permits.get():
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
                    permits.put(True)
                # No reference to the batch is kept here, because freeing the batch would delay the next batch.
                yield content.pop()
        finally:
            permits.put(False)
            thread.join()

    def _gather(self, rows: RowIndices, documents: int, first: int) -> Batch:
        split = self._split
        labels, weights = np.asarray(split.labels[rows]), split.weight_bytes(rows)
        num_rows = max_shard_size(documents, self._size, self._group_size)
        batch = pack_batch(split.char_ids(rows), labels, num_rows, documents, first, weights, split.targets.bytes(rows))
        return batch._replace(rows=rows)
