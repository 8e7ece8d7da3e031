"""Rows of a part → batches for one rank. Rank and size arrive as two ints, so any rank can be tried in one process.

The order of an epoch is one permutation of all rows, a function of (seed, epoch) alone. Global batch k is its k-th
stretch of ``batch_size`` rows, and each rank takes a share of it; the shares differ by at most one row. A position is
therefore (epoch, documents consumed globally), whatever the number of ranks.
"""

from __future__ import annotations

import ctypes
import itertools
import queue
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import mxnet as mx
import numpy as np
import numpy.typing as npt
from mxnet import gluon

from crepe_dist.data.alphabet import BLANK, Codes
from crepe_dist.data.dataset import Part
from crepe_dist.mxnet_internals import pointer

Order = npt.NDArray[np.int64]
PREFETCH = 4
EXTRA = 3  # bytes of a row behind its codes


@dataclass(frozen=True)
class Batch:
    """One rank's share of a global batch, filled up with blank rows of weight 0 to the same shape in every step.

    All of it is in one array, because each array costs a copy to the device, and a tenth of a millisecond to make.

    Attributes:
        packed: uint8 [B, L + 3] NDArray in host memory; B is the largest share of a full batch. The codes, the low and
            the high byte of the label, and 1 for a document, 0 for filling.
        labels: int32 [n], the labels of this rank's documents, which are the first rows.
        documents: real rows in the global batch, over all ranks.
        first: place of this rank's first document in the global batch.
        rows: int64 [n], numbers of this rank's documents in their part, where they come from one.
    """

    packed: mx.nd.NDArray
    labels: npt.NDArray[np.int32]
    documents: int
    first: int = 0
    rows: Order = field(default_factory=lambda: np.zeros(0, np.int64))

    def on(self, device: Any) -> tuple[mx.nd.NDArray, mx.nd.NDArray, mx.nd.NDArray]:
        """On the device: codes, uint8 [B, L]; labels, float32 [B]; weights, float32 [B, 1]."""
        packed = self.packed.as_in_context(device)
        length = packed.shape[1] - EXTRA
        low, high, weights = packed.slice_axis(1, length, None).astype("float32").split(EXTRA, axis=1)
        return packed.slice_axis(1, 0, length), (low + 256 * high).reshape((-1,)), weights

    def pieces(self, rows: int) -> list[Batch]:
        """The same batch in pieces of at most ``rows`` rows of ``packed``, whose memory they share."""
        total = self.packed.shape[0]
        return [
            Batch(
                self.packed[start : start + rows],
                self.labels[start : start + rows],
                self.documents,
                self.first + start,
                self.rows[start : start + rows],
            )
            for start in range(0, total, rows)
        ]


def pack(codes: Codes, labels: npt.NDArray[np.int32], rows: int, documents: int, first: int = 0) -> Batch:
    """A batch of ``rows`` rows out of this rank's documents, uint8 [n, L] and int32 [n]; n is at most ``rows``."""
    count, length = codes.shape
    packed = mx.nd.empty((rows, length + EXTRA), ctx=mx.cpu(), dtype="uint8")
    view = _view(packed)
    view[:count, :length] = codes
    view[count:, :length] = BLANK
    view[:count, length] = labels & 0xFF
    view[:count, length + 1] = labels >> 8
    view[:count, length + 2] = 1
    view[count:, length:] = 0
    return Batch(packed, labels, documents, first)


def _view(array: mx.nd.NDArray) -> Codes:
    """The memory of a uint8 array in host memory on which nothing is waiting, to be filled in place.

    ``mx.nd.array`` waits for the engine, which takes ten times as long as filling a batch. The view must not outlive
    the array.
    """
    bytes_of = ctypes.cast(pointer(array), ctypes.POINTER(ctypes.c_uint8))
    return np.ctypeslib.as_array(bytes_of, shape=array.shape)


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

    def __iter__(self) -> Iterator[list[tuple[Order, int, int]]]:
        for start in self.starts:
            stop = min(start + self._batch_size, len(self._order))
            begin, end = share(start, stop, self._rank, self._size)
            yield [(self._order[begin:end], stop - start, begin - start)]


class _Rows:
    """A Gluon data set whose item is a whole batch: one gather from the memory map."""

    def __init__(self, part: Part, rows: int) -> None:
        self._part = part
        self._rows = rows

    def __len__(self) -> int:
        return len(self._part)

    def __getitem__(self, item: tuple[Order, int, int]) -> Batch:
        indices, documents, first = item
        labels = np.asarray(self._part.labels[indices])
        return replace(pack(self._part.codes(indices), labels, self._rows, documents, first), rows=indices)


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
    yield from _ahead(loader)


def _ahead(items: Iterable[Batch]) -> Iterator[Batch]:
    """The same items, fetched by a thread of its own: asking Gluon's loader for a batch that is ready takes a
    twentieth of a millisecond, which on a GPU is a noticeable part of a step."""
    ready: queue.SimpleQueue[tuple[str, list[Any]]] = queue.SimpleQueue()
    # A True for every PREFETCH batches that may be fetched, since waking a thread takes time, too; False: no more.
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
            yield content.pop()  # not held here: to free a batch takes longer than to get the next
    finally:
        room.put(False)
        thread.join()


def _only(items: list[Batch]) -> Batch:
    (item,) = items
    return item
