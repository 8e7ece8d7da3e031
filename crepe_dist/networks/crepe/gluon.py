"""Crepe and its tower as Gluon blocks."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import mxnet as mx
import numpy as np
from mxnet.gluon import nn

from crepe_dist.data.alphabet import Codes
from crepe_dist.data.batch import Batch
from crepe_dist.engines.gluon.block import Network
from crepe_dist.engines.gluon.dropout import kept
from crepe_dist.engines.gluon.layers import Casting, Logits
from crepe_dist.mxnet_internals import drop_compiled_graph
from crepe_dist.native.constants import FEATURE_STREAM, POOLED_BLOCKS, SUM_SCALE, TOWER_TAPS
from crepe_dist.networks.crepe.shape import CrepeShape
from crepe_dist.networks.crepe.tower import characters, look_up
from crepe_dist.networks.ngrams.gluon import NGrams
from crepe_dist.networks.ngrams.hashing import rows_of


class Crepe(Network):
    """The n-gram table and the tower: buckets and masks, see ``inputs`` → float32 logits [B, classes]."""

    shape: CrepeShape

    def __init__(self, shape: CrepeShape, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.shape = shape
        self._rows: dict[mx.Context, mx.nd.NDArray] = {}
        with self.name_scope():
            self.ngrams = NGrams(shape.table)
            self.tower = Tower(shape)
        # Gluon's own __setattr__ would list the tower's parameters twice.
        object.__setattr__(self, "dropping", Dropping(self.tower))

    def hybridize(self, active: bool = True, **flags: Any) -> None:
        """Compile both parts at their next call, the tower as two graphs: without and with dropout."""
        for graph in (self.ngrams, self.tower, self.dropping):
            graph.hybridize(active, **flags)

    def prepare(self, batch: Batch, seed: int | None = None) -> Batch:
        """Look up the buckets of a batch in host memory, because MXNet has no operator for it.

        Returns:
            The batch with the arrays of ``NGrams.prepare``, and those of ``tower.look_up`` as int32 and uint8; with a
            seed those for training, see ``Tower``.
        """
        shape = self.shape
        batch = self.ngrams.prepare(batch)
        codes = batch.packed[:, : shape.feature_len]
        buckets, known, inside = look_up(codes, shape.alphabet_size, shape.reach, shape.rows, shape.stride)
        training: tuple[Codes, ...] = ()
        if seed is not None:
            size, random = (len(codes), shape.positions), seed ^ FEATURE_STREAM
            of_embedding = kept(shape.dropout, seed, batch.first, (*size, shape.width))
            of_features = kept(shape.FEATURE_DROPOUT, random, batch.first, (len(codes), 2, shape.width))
            training = characters(codes, shape.alphabet_size, shape.stride), of_embedding, of_features
            by_length = (*size, shape.stride, shape.reach)
            known.reshape(by_length)[..., 0] = False
            longer = min(1, shape.reach - 1)  # MXNet has no empty arrays
            buckets = buckets.reshape(by_length)[..., longer:].reshape(*size, -1)
            known = known.reshape(by_length)[..., longer:].reshape(*size, -1)
        return replace(batch, extra=(*batch.extra, buckets, known.view(np.uint8), inside.view(np.uint8), *training))

    def inputs(self, codes: mx.nd.NDArray, *extra: mx.nd.NDArray) -> tuple[mx.nd.NDArray, ...]:
        """Return the arguments of the forward pass from the arrays of ``prepare``."""
        buckets, own, places, known, inside, *training = extra
        own, known, inside = (array.astype("float32") for array in (own, known, inside))
        if training:
            training = [self._character_rows(codes.context), *training]
        return buckets, own, places, known, inside, *training

    def _character_rows(self, device: mx.Context) -> mx.nd.NDArray:
        """Return the row of each character in the tower's table, int32 [alphabet_size + 1]."""
        if device not in self._rows:
            keys = np.arange(1, self.shape.alphabet_size + 2, dtype=np.uint64)
            self._rows[device] = mx.nd.array(rows_of(keys, self.shape.rows), ctx=device, dtype="int32")
        return self._rows[device]

    def parts(self, *inputs: mx.nd.NDArray) -> tuple[mx.nd.NDArray, ...]:
        """Compute the logits of table and tower, float32 [B, classes]."""
        return self.ngrams(*inputs[:2]), self.tower(*inputs[2:])

    def forward(self, *inputs: Any) -> Any:
        return SUM_SCALE * (self.ngrams(*inputs[:2]) + self.tower(*inputs[2:]))

    def training_logits(self, *inputs: mx.nd.NDArray) -> tuple[mx.nd.NDArray, ...]:
        """Compute the logits of table and tower, float32 [B, classes], with dropout by the masks of ``prepare``."""
        buckets, own, places, known, inside, *training = inputs
        assert training, "the batch was prepared for inference"
        return self.ngrams(buckets, own), self.dropping(places, known, inside, *training)

    def compute_in(self, precision: str, device: Any) -> None:
        """Set the precision of MXNet's convolutions, and discard the compiled graphs."""
        for layer in self.tower.convolutions:
            layer.dtype = precision
        for graph in (self.tower, self.dropping):
            drop_compiled_graph(graph)


class Convolution(Casting, nn.Conv1D):
    """Convolution [B, channels, positions] → the same size; it computes in ``dtype``, from and to float32."""

    def hybrid_forward(self, F: Any, x: Any, weight: Any, bias: Any) -> Any:
        out = super().hybrid_forward(F, *self.cast_all(F, x, weight, bias))
        return out if self.dtype == "float32" else F.amp_cast(out, dtype="float32")


class Tower(nn.HybridBlock):
    """Buckets and masks of each position → float32 logits [B, classes]."""

    def __init__(self, shape: CrepeShape, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._shape, width = shape, shape.width
        with self.name_scope():
            self.table = self.params.get("table", shape=(shape.rows, width))
            self.convolutions = nn.HybridSequential(prefix="")
            for number in range(2 * shape.blocks):
                self.convolutions.add(
                    Convolution(width, TOWER_TAPS, padding=TOWER_TAPS // 2, in_channels=width, prefix=f"conv{number}_")
                )
            self.out = Logits(shape.classes, in_units=2 * width)

    def hybrid_forward(self, F: Any, buckets: Any, known: Any, inside: Any, *training: Any, table: Any) -> Any:
        """Compute the logits.

        In training, n-grams of one character come apart from the others, because Embedding's gradient on a GPU adds all
        occurrences of a row one after the other (checked with MXNet 1.9.1: ``EmbeddingGradKernel``).

        Args:
            buckets: int32 [B, T, n-grams of a position].
            known: 1 where there is such an n-gram, else 0, float32 of the same shape.
            inside: 1 for positions of the document, else 0, float32 [B, T].
            training: in training, the row of each character of the alphabet, int32 [alphabet_size + 1], and the
                characters, uint8 [B, T, stride]; masks of the embedding, uint8 [B, T, width], and of the features,
                uint8 [B, 2, width].
        """
        shape = self._shape
        look_up = partial(F.Embedding, weight=table, input_dim=shape.rows, output_dim=shape.width)
        # A product of matrices per position: on a CPU it takes a third of the time of a product and a sum.
        embedding = F.squeeze(F.batch_dot(F.expand_dims(known, axis=2), look_up(buckets)), axis=2)
        if training:
            character_rows, characters, of_embedding, of_features = training
            counts = F.sum(F.one_hot(characters, depth=shape.alphabet_size + 1), axis=2)
            embedding = embedding + F.dot(counts, look_up(character_rows))
            embedding = embedding * (F.cast(of_embedding, "float32") * (1 / (1 - shape.dropout)))
        x, inside = F.transpose(F.relu(embedding), axes=(0, 2, 1)), F.expand_dims(inside, axis=1)
        for number in range(0, len(self.convolutions), 2):
            hidden = F.broadcast_mul(F.relu(self.convolutions[number](x)), inside)
            x = F.broadcast_mul(F.relu(x + self.convolutions[number + 1](hidden)), inside)
            if number // 2 < POOLED_BLOCKS:
                x, inside = (
                    F.Pooling(
                        array.expand_dims(2), kernel=(1, 2), stride=(1, 2), pool_type="max", pooling_convention="full"
                    ).squeeze(2)
                    for array in (x, inside)
                )
        positions = F.maximum(F.sum(inside, axis=2), 1)
        # Its gradient is that of a single maximum; `max` would give it to each of several equal ones.
        most = F.Pooling(x.expand_dims(2), kernel=(1, 1), global_pool=True, pool_type="max").reshape((0, 0))
        features = F.concat(most, F.broadcast_div(F.sum(x, axis=2), positions), dim=1)
        if training:
            features = features * (F.cast(of_features, "float32").reshape((0, -1)) * (1 / (1 - shape.FEATURE_DROPOUT)))
        return self.out(features)


class Dropping(nn.HybridBlock):
    """View of a tower for calls with masks: a compiled graph accepts only one kind of call."""

    def __init__(self, tower: Tower) -> None:
        super().__init__(prefix="")
        self.tower = tower

    def hybrid_forward(self, F: Any, *inputs: Any) -> Any:
        return self.tower(*inputs)


BLOCK = Crepe
