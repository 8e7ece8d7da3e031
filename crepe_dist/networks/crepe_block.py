"""The Crepe network as a Gluon block."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import mxnet as mx
import numpy as np
from mxnet.gluon import nn

from crepe_dist.data.batch import Batch
from crepe_dist.model import tower
from crepe_dist.model.crepe import SUM_SCALE, CrepeShape
from crepe_dist.model.hashing import fill
from crepe_dist.mxnet_internals import drop_compiled_graph, host_array, view
from crepe_dist.networks.dropout import OTHER_STREAM, Kept
from crepe_dist.networks.ngrams_block import NGrams
from crepe_dist.networks.tower_block import Dropping, Tower


class Crepe(nn.HybridBlock):
    """The n-gram table and the tower: buckets and masks, see ``inputs`` → float32 logits [B, classes]."""

    def __init__(self, shape: CrepeShape, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.shape = shape
        self.weights = (1.0, 1.0)  # of the logits of the n-gram table and of the tower
        with self.name_scope():
            self.ngrams = NGrams(shape.table)
            self.tower = Tower(
                shape.rows, shape.width, shape.blocks, shape.stride * shape.reach, shape.classes, shape.dropout,
                shape.FEATURE_DROPOUT,
            )  # fmt: skip
        # Gluon's own __setattr__ would list the tower's parameters twice.
        object.__setattr__(self, "dropping", Dropping(self.tower))

    def hybridize(self, active: bool = True, **flags: Any) -> None:
        """Compile both parts at their next call, the tower as two graphs: without and with dropout."""
        for graph in (self.ngrams, self.tower, self.dropping):
            graph.hybridize(active, **flags)

    def prepare(self, batch: Batch) -> Batch:
        """Look up the buckets of a batch in host memory, because MXNet has no operator for it.

        Returns:
            The batch with the arrays of ``NGrams.prepare``, and those of ``tower.look_up`` as int32 and uint8.
        """
        shape = self.shape
        batch = self.ngrams.prepare(batch)
        codes = view(batch.packed)[:, : shape.feature_len]
        places, known, inside = tower.look_up(codes, shape.alphabet_size, shape.reach, shape.rows, shape.stride)
        fill(places, known, shape.rows)
        arrays = (places, known.view(np.uint8), inside.view(np.uint8))
        return replace(batch, extra=(*batch.extra, *map(host_array, arrays)))

    def inputs(self, batch: Batch, codes: mx.nd.NDArray) -> tuple[mx.nd.NDArray, ...]:
        """Return the arguments of the forward pass for ``batch``, on the device of its codes."""
        extra = (batch if batch.extra else self.prepare(batch)).extra
        moved = [each.as_in_context(codes.context) for each in extra]
        return tuple(each if each.dtype == np.int32 else each.astype("float32") for each in moved)

    def logits(self, *inputs: mx.nd.NDArray) -> mx.nd.NDArray:
        """Compute the logits, float32 [B, classes]."""
        parts: tuple[tuple[Any, Any], ...] = ((self.ngrams, inputs[:2]), (self.tower, inputs[2:]))
        return SUM_SCALE * sum(weight * part(*own) for weight, (part, own) in zip(self.weights, parts) if weight)

    def forward(self, *inputs: Any) -> Any:
        return SUM_SCALE * (self.ngrams(*inputs[:2]) + self.tower(*inputs[2:]))

    def training_logits(self, kept: Kept, *inputs: mx.nd.NDArray) -> tuple[mx.nd.NDArray, ...]:
        """Compute the logits of each part, float32 [B, classes], with dropout by ``kept``."""
        shape = self.shape
        masks = (
            kept(shape.dropout, shape.positions, shape.width),
            kept(shape.FEATURE_DROPOUT, 2, shape.width, stream=OTHER_STREAM),
        )
        return self.ngrams(*inputs[:2]), self.dropping(*inputs[2:], *masks)

    def compute_in(self, precision: str, device: Any) -> None:
        """Set the precision of MXNet's convolutions, and discard the compiled graphs."""
        for layer in self.tower.convolutions:
            layer.dtype = precision
        for graph in (self.tower, self.dropping):
            drop_compiled_graph(graph)
