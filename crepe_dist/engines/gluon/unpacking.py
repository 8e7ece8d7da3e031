"""Copying a batch to MXNet's device, and unpacking it there."""

from __future__ import annotations

from typing import Any

import mxnet as mx
from mxnet import gluon

from crepe_dist.data.batch import Batch, extra_bytes
from crepe_dist.data.dataset import WEIGHT_BYTES, WEIGHT_UNIT
from crepe_dist.data.targets import PAIR_BYTES, SHARE_UNIT
from crepe_dist.mxnet_internals import host_array


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


def unpacked(batch: Batch, device: Any) -> tuple[mx.nd.NDArray, mx.nd.NDArray, mx.nd.NDArray]:
    """Copy a batch to a device: codes, uint8 [B, L]; labels, float32 [B]; weights, float32 [B, 1]."""
    codes, labels, weights = Unpack()(host_array(batch.packed).as_in_context(device))
    return codes, labels, weights
