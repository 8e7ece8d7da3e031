"""Batches for one rank. Rank and world size are plain ints, so a single process can test any rank.

Each epoch visits the rows in one permutation, a function of (seed, epoch) alone. Global batch k is the k-th run of
``batch_size`` rows, divided among the ranks in shares that differ by at most one row. A position in training is
therefore (epoch, documents consumed globally), for any number of ranks.
"""

from __future__ import annotations

import itertools
import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import mxnet as mx
import numpy as np
import numpy.typing as npt
from mxnet import gluon

from crepe_dist.data.alphabet import BLANK, Codes
from crepe_dist.data.dataset import UNWEIGHTED, WEIGHT_BYTES, WEIGHT_UNIT, Part
from crepe_dist.data.order import Order, share
from crepe_dist.data.targets import PAIR_BYTES, SHARE_UNIT
from crepe_dist.mxnet_internals import view

PREFETCH = 4
LABEL_BYTES = 2  # of a row with one label


def extra_bytes(pairs: int = 0) -> int:
    """Return the bytes per packed row after its codes: its label or pairs, and its weight, low bytes first.

    Args:
        pairs: number of pairs of class and share, see ``targets``; 0 for one label.
    """
    return (PAIR_BYTES * pairs or LABEL_BYTES) + WEIGHT_BYTES


class Unpack(gluon.HybridBlock):
    """``Batch.packed`` → codes, uint8 [B, L]; labels, float32 [B]; weights, float32 [B, 1].

    Args:
        pairs: number of pairs per row; the labels are then the shares of all classes, float32 [B, classes].
        classes: number of classes; needed with pairs only.
    """

    def __init__(self, pairs: int = 0, classes: int = 0) -> None:
        super().__init__(prefix="")
        self._pairs = pairs
        self._classes = classes

    def hybrid_forward(self, F: Any, packed: Any) -> tuple[Any, Any, Any]:
        size = extra_bytes(self._pairs)
        codes = F.slice_axis(packed, axis=1, begin=0, end=-size)
        extra = F.cast(F.slice_axis(packed, axis=1, begin=-size, end=None), dtype="float32")
        if self._pairs:
            weight = F.split(F.slice_axis(extra, axis=1, begin=-WEIGHT_BYTES, end=None), WEIGHT_BYTES, axis=1)
            labels = self._shares(F, F.slice_axis(extra, axis=1, begin=0, end=-WEIGHT_BYTES))
        else:
            low, high, *weight = F.split(extra, size, axis=1)
            labels = F.reshape(low + 256 * high, (-1,))
        return codes, labels, (weight[0] + 256 * weight[1]) / WEIGHT_UNIT + weight[2]

    def _shares(self, F: Any, pairs: Any) -> Any:
        low, high, *share = F.split(F.reshape(pairs, (0, -1, PAIR_BYTES)), PAIR_BYTES, axis=2)
        of_class = F.one_hot(F.reshape(low + 256 * high, (0, -1)), depth=self._classes)
        return F.sum(F.broadcast_mul(of_class, (share[0] + 256 * share[1]) / SHARE_UNIT), axis=1)


@dataclass(frozen=True)
class Batch:
    """One rank's share of a global batch, padded with blank rows of weight 0 to the same shape in every step.

    Everything is packed into one array, because every array takes 0.1 ms to create and a copy to the device.

    Attributes:
        packed: uint8 [B, L + 5] NDArray in host memory; B is a rank's largest share of a full batch. A row holds the
            codes, the label and the weight; the weight of padding is 0. In place of the label it holds all pairs of
            class and share, if rows have several; see ``extra_bytes``.
        labels: labels of this rank's documents, which come first in ``packed``, int32 [n].
        documents: number of documents in the global batch, over all ranks.
        first: position of this rank's first document in the global batch.
        rows: row numbers of this rank's documents in their split, int64 [n]; empty if they do not come from a split.
        extra: further arrays of B rows in host memory, which the network made from ``packed``; see ``batches``.
    """

    packed: mx.nd.NDArray
    labels: npt.NDArray[np.int32]
    documents: int
    first: int = 0
    rows: Order = field(default_factory=lambda: np.zeros(0, np.int64))
    extra: tuple[mx.nd.NDArray, ...] = ()

    def on(self, device: Any) -> tuple[mx.nd.NDArray, mx.nd.NDArray, mx.nd.NDArray]:
        """Copy to the device: codes, uint8 [B, L]; labels, float32 [B]; weights, float32 [B, 1]."""
        codes, labels, weights = Unpack()(self.packed.as_in_context(device))
        return codes, labels, weights


def pack(
    codes: Codes,
    labels: npt.NDArray[np.int32],
    rows: int,
    documents: int,
    first: int = 0,
    weights: Codes = UNWEIGHTED,
    pairs: Codes | None = None,
) -> Batch:
    """Pack a rank's documents into a padded batch.

    Args:
        codes: encoded documents, uint8 [n, L].
        labels: their labels, int32 [n].
        rows: number of rows of the batch, at least n.
        documents: number of documents in the global batch.
        first: position of the first document in the global batch.
        weights: their weights in bytes, uint8 [n or 1, 3]; see ``Part.weight_bytes``.
        pairs: their classes and shares in bytes, see ``Targets.bytes``; ``None``: each has its label only.
    """
    count, length = codes.shape
    size = (LABEL_BYTES if pairs is None else pairs.shape[1]) + WEIGHT_BYTES
    packed = mx.nd.empty((rows, length + size), ctx=mx.cpu(), dtype="uint8")
    content = view(packed)
    content[:count, :length] = codes
    content[count:, :length] = BLANK
    if pairs is None:
        content[:count, length] = labels & 0xFF
        content[:count, length + 1] = labels >> 8
    else:
        content[:count, length:-WEIGHT_BYTES] = pairs
    content[:count, -WEIGHT_BYTES:] = weights
    content[count:, length:] = 0
    return Batch(packed, labels, documents, first)


class RankBatches:
    """Batch sampler for one rank: its row numbers in every global batch from ``first`` on."""

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


Prepare = Callable[[Batch], Batch]


class _BatchDataset:
    """Gluon data set whose item is a whole batch, gathered from the memory map at once."""

    def __init__(self, part: Part, rows: int, prepare: Prepare) -> None:
        self._part = part
        self._rows = rows
        self._prepare = prepare

    def __len__(self) -> int:
        return len(self._part)

    def __getitem__(self, item: tuple[Order, int, int]) -> Batch:
        indices, documents, first = item
        part = self._part
        labels = np.asarray(part.labels[indices])
        pairs = None if part.targets is None else part.targets.bytes(indices)
        weights = part.weight_bytes(indices)
        batch = pack(part.codes(indices), labels, self._rows, documents, first, weights, pairs)
        return self._prepare(replace(batch, rows=indices))


def as_it_is(batch: Batch) -> Batch:
    """Return the batch: the default for networks that only read ``packed``."""
    return batch


def batches(
    part: Part,
    order: Order,
    batch_size: int,
    rank: int,
    size: int,
    first: int = 0,
    prepare: Prepare = as_it_is,
) -> Iterator[Batch]:
    """Yield this rank's share of each global batch; a thread prefetches them.

    Args:
        part: split to read.
        order: its row numbers in the order of the epoch, int64 [rows].
        batch_size: documents per global batch.
        rank: rank of this process.
        size: number of ranks.
        first: number of documents of ``order`` already consumed by all ranks, when a run is resumed.
        prepare: adds what the network needs besides ``packed``, in the thread that reads the batches.
    """
    sampler = RankBatches(order, batch_size, rank, size, first)
    # A thread, not a process: workers forked after hvd.init() are known to hang. The gather in C releases the GIL.
    loader: Any = gluon.data.DataLoader(
        _BatchDataset(part, -(-batch_size // size), prepare),
        batch_sampler=sampler,
        batchify_fn=_only,
        num_workers=1,
        thread_pool=True,
        prefetch=PREFETCH,
    )
    yield from _ahead(loader)


def _ahead(items: Iterable[Batch]) -> Iterator[Batch]:
    """Fetch items in another thread.

    Gluon's loader takes 0.05 ms to return a batch even if it is ready, a noticeable part of a step on a GPU.
    """
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


def _only(items: list[Batch]) -> Batch:
    (item,) = items
    return item
