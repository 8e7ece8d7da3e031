"""Division of a rank's batch into pieces of one shape, for less memory."""

from __future__ import annotations

import mxnet as mx

from crepe_dist.data.batch import Batch
from crepe_dist.data.dataset import WEIGHT_BYTES
from crepe_dist.mxnet_internals import view


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
