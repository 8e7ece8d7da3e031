"""The n-gram network as a Gluon block."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import mxnet as mx
import numpy as np

from crepe_dist.data.batch import Batch
from crepe_dist.engines.gluon.block import Network
from crepe_dist.native.constants import NGRAM_SCALE, ROOT_SCALE
from crepe_dist.networks.ngrams.hashing import look_up
from crepe_dist.networks.ngrams.shape import NGramShape


class NGrams(Network):
    """Buckets, int32 [B, K], and a mask, float32 [B, K] → float32 logits [B, classes]; see ``inputs``."""

    shape: NGramShape

    def __init__(self, shape: NGramShape, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.shape = shape
        with self.name_scope():
            self.weight = self.params.get("weight", shape=(shape.buckets, shape.classes))
            self.bias = self.params.get("bias", shape=(shape.classes,))
            self.significant = self.params.get("significant", shape=(shape.buckets,))  # 1 or 0

    def prepare(self, batch: Batch, seed: int | None = None) -> Batch:
        """Look up the buckets of a batch in host memory, because MXNet has no operator for it.

        Returns:
            The batch with two further arrays: buckets, int32 [B, K], and the mask, uint8 [B, K], 1 for buckets of the
            row; K is ``max_ngrams``.
        """
        buckets, counts = look_up(batch.packed[:, : self.shape.feature_len], self.shape)
        mask = np.arange(buckets.shape[1]) < counts[:, None]
        return replace(batch, extra=(buckets, mask.view(np.uint8)))

    def inputs(self, codes: mx.nd.NDArray, *extra: mx.nd.NDArray) -> tuple[mx.nd.NDArray, ...]:
        """Return the arguments of the forward pass from the arrays of ``prepare``."""
        buckets, mask = extra
        return buckets, mask.astype("float32")

    def hybrid_forward(self, F: Any, buckets: Any, mask: Any, weight: Any, bias: Any, significant: Any) -> Any:
        rows = F.Embedding(buckets, weight, input_dim=self.shape.buckets, output_dim=self.shape.classes)
        telling = mask * F.take(significant, buckets)
        factors = 0
        for group in (telling, mask - telling):
            number = F.maximum(F.sum(group, axis=1, keepdims=True), 1)
            scale = F.minimum(ROOT_SCALE * F.sqrt(number), NGRAM_SCALE)
            factors = factors + F.broadcast_mul(group, scale / number)
        return F.broadcast_add(F.batch_dot(F.expand_dims(factors, 1), rows).reshape((0, -1)), bias.expand_dims(0))


BLOCK = NGrams
