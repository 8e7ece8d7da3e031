"""The paper's network as a Gluon block, and as two compiled graphs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import count
from typing import Any

import mxnet as mx
from mxnet.gluon import nn

from crepe_dist.data.batch import Batch
from crepe_dist.engines.gluon.block import Network
from crepe_dist.engines.gluon.dropout import kept
from crepe_dist.engines.gluon.layers import Casting, Conv1D, Dense, Dropout, Logits, MaxPool1D, OneHotConv1D
from crepe_dist.mxnet_internals import drop_compiled_graph
from crepe_dist.native.constants import PAPER_POOL
from crepe_dist.networks.paper.shape import CONVOLUTIONS, PaperShape, lengths

DROPOUTS = 2


class Paper(Network, nn.HybridSequential):
    """Six convolutions, three pools, three dense layers: uint8 codes [B, L] → float32 logits [B, classes].

    Children have the same indices as in the notebook's ``HybridSequential`` (convolutions 0, 2, 4, 5, 6, 7; dense
    layers 10, 12, 14), so both can load each other's ``save_parameters`` files. Every layer gets its input size,
    because deferred initialisation would delay the broadcast of the parameters to the first forward pass.
    """

    shape: PaperShape

    def __init__(self, shape: PaperShape, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.shape = shape
        with self.name_scope():
            for index, (kernel, pooled) in enumerate(CONVOLUTIONS):
                name = f"conv{index}_"
                if index == 0:
                    self.add(OneHotConv1D(shape.alphabet_size, shape.filters, kernel, prefix=name))
                else:
                    width = shape.filters
                    self.add(Conv1D(width, kernel, in_channels=width, activation="relu", prefix=name))
                if pooled:
                    self.add(MaxPool1D(pool_size=PAPER_POOL, strides=PAPER_POOL))
            self.add(nn.Flatten())  # small, 1014 characters: 34 × 256 = 8704 inputs
            convolutions = len(self)
            width = lengths(shape.feature_len)[-1] * shape.filters
            for _ in range(DROPOUTS):
                self.add(Dense(shape.units, in_units=width, activation="relu"))
                self.add(Dropout(shape.dropout))
                width = shape.units
            self.add(Logits(shape.classes, in_units=width))
        self.stages = Stages(list(self), convolutions)

    def hybridize(self, active: bool = True, **flags: Any) -> None:
        """Compile the network at its next call: as one graph, and as two for ``logits`` and ``training_logits``."""
        super().hybridize(active, **flags)
        self.stages.hybridize(active, **flags)

    def logits(self, codes: mx.nd.NDArray) -> mx.nd.NDArray:
        """Compute the logits, float32 [B, classes], as calling the network does."""
        return self.stages(codes)

    def prepare(self, batch: Batch, seed: int | None = None) -> Batch:
        """Draw the dropout masks, uint8 [B, dropout layers, units]."""
        if seed is None or not self.shape.dropout:
            return batch
        masks = kept(self.shape.dropout, seed, batch.first, (len(batch.packed), DROPOUTS, self.shape.units))
        return replace(batch, extra=(masks,))

    def training_logits(self, *inputs: mx.nd.NDArray) -> tuple[mx.nd.NDArray]:
        """Compute the logits, float32 [B, classes], of the network's only part; the inputs have a mask."""
        assert len(inputs) == 1 + bool(self.shape.dropout)  # without one, MXNet's generator would drop units
        return (self.stages(*inputs),)

    def compute_in(self, precision: str, device: Any) -> None:
        """Set precision and device of MXNet's operators, and discard the compiled graphs."""
        for layer in self:
            if isinstance(layer, Casting):
                layer.dtype = precision
            if isinstance(layer, MaxPool1D):
                layer.two_dimensional = device.device_type == "gpu"
        drop_compiled_graph(self)
        self.stages.drop_compiled_graphs()


class Stage(nn.HybridSequential):
    """Consecutive layers of a network, which share their parameters with it.

    Inputs are those of the first layer and, optionally, ``kept``, uint8 [B, dropout layers, units]: 1 for units that
    the dropout layers keep, 0 for others. A compiled stage accepts only the kind of call that compiled it.
    """

    def __init__(self, layers: Iterable[nn.HybridBlock]) -> None:
        super().__init__(prefix="")
        self.add(*layers)

    def hybrid_forward(self, F: Any, x: Any, kept: Any = None) -> Any:
        places = count()
        for layer in self:
            if kept is None or not isinstance(layer, Dropout):
                x = layer(x)
            else:
                place = next(places)
                x = layer(x, F.slice_axis(kept, axis=1, begin=place, end=place + 1).reshape((0, -1)))
        return x


class Stages:
    """The layers of a network in two stages: a tower, and a head with all dropout layers.

    A compiled graph visits its gradients in the order of the parameters, from the first layer on. In float16, every
    gradient ends in a cast to float32, so all casts come after the backward pass of the first layer (checked with MXNet
    1.9.1: ``nnvm::Gradient``). With a graph of its own, the head's gradients are complete before the backward pass of
    the tower starts, and their all-reduce overlaps with it.

    Args:
        start: number of layers in the tower.
    """

    def __init__(self, layers: Sequence[nn.HybridBlock], start: int) -> None:
        self.tower = Stage(layers[:start])
        self.head = Stage(layers[start:])
        self.dropping_head = Stage(layers[start:])  # the same layers, called with a mask

    def hybridize(self, active: bool = True, **flags: Any) -> None:
        """Compile the stages at their next call; arguments are those of Gluon's ``hybridize``."""
        for stage in (self.tower, self.head, self.dropping_head):
            stage.hybridize(active, **flags)

    def drop_compiled_graphs(self) -> None:
        """Discard the compiled graphs, which hold the layers' settings."""
        for stage in (self.tower, self.head, self.dropping_head):
            drop_compiled_graph(stage)

    def __call__(self, x: Any, kept: Any = None) -> Any:
        """Compute the last layer's output; ``kept``: mask of the dropout layers, see ``Stage``."""
        features = self.tower(x)
        return self.head(features) if kept is None else self.dropping_head(features, kept)


BLOCK = Paper
