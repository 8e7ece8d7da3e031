"""A residual convolutional network over the n-grams at each position of a text, as a Gluon block.

    eyes(t)  = sum of table[b] over the hashed n-grams of 1 … ``reach`` known characters that start at one of the
               ``stride`` characters of position t
    x        = relu(eyes), with dropout of single numbers in training
    x        = relu(x + conv(relu(conv(x)))) in each block; after the first two blocks a max pool of 2
    logits   = out(maximum over positions of x, mean over positions of x), with dropout of the features in training

A document is its characters up to the last known one, between two symbols for its start and end; beyond them everything
is zero. The second convolution of each block starts at zero (Zhang, Dauphin & Ma 2019, arXiv:1901.09321), so that no
normalisation is needed.
"""

from __future__ import annotations

from typing import Any

import mxnet as mx
import numpy as np
import numpy.typing as npt
from mxnet.gluon import nn

from crepe_dist.data.alphabet import BLANK, Codes
from crepe_dist.model.hashing import edged, keys, rows_of
from crepe_dist.model.layers import Casting, Logits

TAPS = 5
POOLED_BLOCKS = 2


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
        dropout: probability of dropping a number of the eyes.
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
            self.table = self.params.get("table", shape=(rows, width), init=mx.init.Normal(0.2))
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
            self.out = Logits(classes, in_units=2 * width, weight_initializer=mx.init.Uniform((2 * width) ** -0.5))

    def hybrid_forward(self, F: Any, buckets: Any, own: Any, inside: Any, *kept: Any, table: Any) -> Any:
        """Compute the logits.

        Args:
            buckets: int32 [B, T, each].
            own: 1 where there is such an n-gram, else 0, float32 [B, T, each].
            inside: 1 for positions of the document, else 0, float32 [B, T].
            kept: in training, masks of the eyes, [B, T, width], and of the features, [B, 2, width].
        """
        eyes = 0
        for n in range(self._each):
            one = {"axis": 2, "begin": n, "end": n + 1}
            rows = F.Embedding(
                F.slice_axis(buckets, **one).reshape((0, 0)), table, input_dim=self._rows, output_dim=self._width
            )
            eyes = eyes + F.broadcast_mul(rows, F.slice_axis(own, **one))
        if kept:
            eyes = eyes * (F.cast(kept[0], "float32") * self._scales[0])
        x, inside = F.transpose(F.relu(eyes), axes=(0, 2, 1)), F.expand_dims(inside, axis=1)
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


def look_up(
    codes: Codes, alphabet_size: int, reach: int, rows: int, stride: int
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Hash the n-grams of each position; equivalent to ``hash_positions`` in native/tower.h.

    Args:
        codes: encoded documents, uint8 [B, L].
        alphabet_size: number of characters.
        reach: length of the longest n-grams.
        rows: number of buckets.
        stride: characters per position.

    Returns:
        The buckets, int32 [B, T, stride × reach], T = ⌈(L + 2) / stride⌉; where there is such an n-gram, bool of the
        same shape; and the positions of the document, bool [B, T].
    """
    text = edged(codes, alphabet_size)
    text = np.pad(text, ((0, 0), (0, -text.shape[1] % stride)), constant_values=BLANK)
    length, known = text.shape[1], text <= alphabet_size
    buckets, own = np.zeros((*text.shape, reach), np.int32), np.zeros((*text.shape, reach), np.bool_)
    for n, (key, good) in enumerate(keys(text, alphabet_size + 1, min(reach, length))):
        buckets[:, : length - n, n], own[:, : length - n, n] = rows_of(key, rows), good
    by_position = (len(text), length // stride, stride * reach)
    inside = np.logical_or.accumulate(known[:, ::-1], axis=1)[:, ::-1][:, ::stride]
    return buckets.reshape(by_position), own.reshape(by_position), inside
