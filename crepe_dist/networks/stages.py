"""A network as two compiled graphs, so that the gradients of its last layers are ready before those of its first."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import count
from typing import Any

from mxnet.gluon import nn

from crepe_dist.mxnet_internals import drop_compiled_graph
from crepe_dist.networks.layers import Dropout


class Stage(nn.HybridSequential):
    """Consecutive layers of a network, which share their parameters with it.

    Inputs are that of the first layer, and optionally ``kept``, uint8 [B, dropout layers, units]: 1 for units that the
    dropout layers keep, 0 for others. A compiled stage accepts only the kind of call that compiled it.
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
        layers: layers of the network.
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

    def __call__(self, x: Any, kept: Callable[[], Any] | None = None) -> Any:
        """Compute the last layer's output.

        Args:
            x: input of the first layer.
            kept: returns the mask of the dropout layers, see ``Stage``. It is called once the tower's operators are
                queued, so that both are computed at the same time. ``None``: no mask.
        """
        features = self.tower(x)
        return self.head(features) if kept is None else self.dropping_head(features, kept())
