"""The tower of the Crepe network as a Gluon block."""

from __future__ import annotations

from typing import Any

import mxnet as mx
from mxnet.gluon import nn

from crepe_dist.model.tower import POOLED_BLOCKS, TAPS
from crepe_dist.networks.layers import Casting, Logits

# Multiples of the learning rate (decision 0063). With one rate for all, the convolutions learn single training
# documents by heart before the embeddings, most of which are touched rarely, have learnt what the n-grams mean.
TABLE_RATE, CONVOLUTIONS_RATE = 5.0, 0.3


class Convolution(Casting, nn.Conv1D):
    """Convolution [B, channels, positions] → the same size; it computes in ``dtype``, from and to float32."""

    def hybrid_forward(self, F: Any, x: Any, weight: Any, bias: Any) -> Any:
        out = super().hybrid_forward(F, *self.cast_all(F, x, weight, bias))
        return out if self.dtype == "float32" else F.amp_cast(out, dtype="float32")


class Tower(nn.HybridBlock):
    """Buckets and masks of each position → float32 logits [B, classes].

    Args:
        rows: rows of the table.
        width: columns of the table, and channels of the convolutions.
        blocks: number of residual blocks.
        each: n-grams at a position.
        classes: number of outputs.
        dropout: probability of dropping a number of the embedding.
        feature_dropout: probability of dropping a feature.
    """

    def __init__(
        self,
        rows: int,
        width: int,
        blocks: int,
        each: int,
        classes: int,
        dropout: float,
        feature_dropout: float,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self._rows, self._width, self._each = rows, width, each
        self._scales = (1 / (1 - dropout), 1 / (1 - feature_dropout))
        with self.name_scope():
            self.table = self.params.get("table", shape=(rows, width), init=mx.init.Normal(0.2), lr_mult=TABLE_RATE)
            self.convolutions = nn.HybridSequential(prefix="")
            for number in range(2 * blocks):
                init = "zeros" if number % 2 else mx.init.Xavier(rnd_type="gaussian", factor_type="in", magnitude=2)
                self.convolutions.add(
                    Convolution(
                        width,
                        TAPS,
                        padding=TAPS // 2,
                        in_channels=width,
                        weight_initializer=init,
                        prefix=f"conv{number}_",
                    )
                )
            self.convolutions.collect_params().setattr("lr_mult", CONVOLUTIONS_RATE)
            self.out = Logits(classes, in_units=2 * width, weight_initializer=mx.init.Uniform((2 * width) ** -0.5))

    def hybrid_forward(self, F: Any, buckets: Any, own: Any, inside: Any, *kept: Any, table: Any) -> Any:
        """Compute the logits.

        Args:
            buckets: int32 [B, T, each].
            own: 1 where there is such an n-gram, else 0, float32 [B, T, each].
            inside: 1 for positions of the document, else 0, float32 [B, T].
            kept: in training, masks of the embedding, [B, T, width], and of the features, [B, 2, width].
        """
        embedding = 0
        for n in range(self._each):
            one = {"axis": 2, "begin": n, "end": n + 1}
            rows = F.Embedding(
                F.slice_axis(buckets, **one).reshape((0, 0)), table, input_dim=self._rows, output_dim=self._width
            )
            embedding = embedding + F.broadcast_mul(rows, F.slice_axis(own, **one))
        if kept:
            embedding = embedding * (F.cast(kept[0], "float32") * self._scales[0])
        x, inside = F.transpose(F.relu(embedding), axes=(0, 2, 1)), F.expand_dims(inside, axis=1)
        for number in range(0, len(self.convolutions), 2):
            hidden = F.broadcast_mul(F.relu(self.convolutions[number](x)), inside)
            x = F.broadcast_mul(F.relu(x + self.convolutions[number + 1](hidden)), inside)
            if number // 2 < POOLED_BLOCKS:
                x, inside = (
                    F.Pooling(
                        each.expand_dims(2), kernel=(1, 2), stride=(1, 2), pool_type="max", pooling_convention="full"
                    ).squeeze(2)
                    for each in (x, inside)
                )
        positions = F.maximum(F.sum(inside, axis=2), 1)
        # Its gradient is that of a single maximum; `max` would give it to each of several equal ones.
        most = F.Pooling(x.expand_dims(2), kernel=(1, 1), global_pool=True, pool_type="max").reshape((0, 0))
        features = F.concat(most, F.broadcast_div(F.sum(x, axis=2), positions), dim=1)
        if kept:
            features = features * (F.cast(kept[1], "float32").reshape((0, -1)) * self._scales[1])
        return self.out(features)


class Dropping(nn.HybridBlock):
    """The same tower, called with masks: a compiled graph accepts only one kind of call."""

    def __init__(self, tower: Tower) -> None:
        super().__init__(prefix="")
        self.tower = tower

    def hybrid_forward(self, F: Any, *inputs: Any) -> Any:
        return self.tower(*inputs)
