"""Batch of encoded documents in one array, its unpacking on the device, and its division into smaller ones."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import mxnet as mx
import numpy as np
import numpy.typing as npt
from mxnet import gluon

from crepe_dist.data.alphabet import BLANK, Codes
from crepe_dist.data.dataset import UNWEIGHTED, WEIGHT_BYTES, WEIGHT_UNIT
from crepe_dist.data.order import Order
from crepe_dist.data.targets import PAIR_BYTES, SHARE_UNIT
from crepe_dist.mxnet_internals import view

LABEL_BYTES = 2  # of a row with one label


def extra_bytes(pairs: int = 0) -> int:
    """Return the bytes of a packed row after its codes: its label, or its pairs of class and share, and its weight."""
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
        weights: their weights in bytes, uint8 [n or 1, 3]; see ``Split.weight_bytes``.
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


def rows_per_piece(rows: int, most: int, multiple: int = 1) -> int:
    """Return the number of rows of each of the fewest equal pieces with at most ``most`` rows.

    It is a multiple of ``multiple``, even if that is more than ``most``, unless one piece has all rows.
    """
    pieces = -(-rows // most)
    return min(rows, -(-rows // pieces // multiple) * multiple)


def pieces(batch: Batch, rows: int) -> list[Batch]:
    """Divide a batch into batches of ``rows`` rows, which share its memory if they fit.

    The last one is padded with its last row at weight 0, because MXNet plans a graph anew for every other shape.
    """
    total = batch.packed.shape[0]
    if rows == total:
        return [batch]
    stop = -(-total // rows) * rows
    packed, *extra = (_lengthened(array, stop) for array in (batch.packed, *batch.extra))
    view(packed)[total:, -WEIGHT_BYTES:] = 0
    return [
        Batch(
            packed[start : start + rows],
            batch.labels[start : start + rows],
            batch.documents,
            batch.first + start,
            batch.rows[start : start + rows],
            tuple(array[start : start + rows] for array in extra),
        )
        for start in range(0, stop, rows)
    ]


def _lengthened(array: mx.nd.NDArray, rows: int) -> mx.nd.NDArray:
    """Return an array in host memory, extended to ``rows`` rows by copies of its last one."""
    have = array.shape[0]
    if have == rows:
        return array
    longer = mx.nd.empty((rows, *array.shape[1:]), ctx=mx.cpu(), dtype=array.dtype)
    view(longer)[:have] = view(array)
    view(longer)[have:] = view(array)[-1]
    return longer
