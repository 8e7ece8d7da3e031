"""Building Gluon networks, and reading and setting their parameters as NumPy arrays under structural names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import mxnet as mx
import numpy as np
from mxnet.gluon import nn

from crepe_dist import registry
from crepe_dist.data.batch import Batch
from crepe_dist.exchange.parameter import Parameter
from crepe_dist.model.parameters import Arrays, check
from crepe_dist.model.shape import Shape
from crepe_dist.mxnet_internals import structural_parameters


class Network(nn.HybridBlock):
    """Base class of the Gluon networks.

    Its methods fit a network that reads codes, uint8 [B, L], and has one part and no dropout.

    Attributes:
        shape: configuration of the network.
    """

    shape: Shape

    def prepare(self, batch: Batch, seed: int | None = None) -> Batch:
        """Add the arrays to a batch, in host memory, that MXNet has no operators for.

        Args:
            seed: seed of the dropout masks; ``None``: for inference, which has none.
        """
        return batch

    def inputs(self, codes: mx.nd.NDArray, *extra: mx.nd.NDArray) -> tuple[mx.nd.NDArray, ...]:
        """Return the arguments of the forward pass from a batch's codes and the arrays of ``prepare``."""
        return (codes, *extra)

    def logits(self, *inputs: mx.nd.NDArray) -> mx.nd.NDArray:
        """Compute the logits, float32 [B, classes]."""
        return self(*inputs)

    def parts(self, *inputs: mx.nd.NDArray) -> tuple[mx.nd.NDArray, ...]:
        """Compute the logits of each part, float32 [B, classes]."""
        return (self(*inputs),)

    def training_logits(self, *inputs: mx.nd.NDArray) -> tuple[mx.nd.NDArray, ...]:
        """Compute the logits of each part, float32 [B, classes], of a batch that was prepared with a seed."""
        return (self(*inputs),)

    def compute_in(self, precision: str, device: Any) -> None:
        """Set the precision and the device of MXNet's operators, and discard the compiled graphs."""


def make(shape: Shape, **kwargs: Any) -> Network:
    """Make an uninitialised network; ``kwargs`` go to Gluon's constructor."""
    network: Network = registry.part(shape.kind, "gluon").BLOCK(shape, **kwargs)
    return network


def build(shape: Shape, parameters: Mapping[str, Parameter], device: mx.Context) -> Network:
    """Build a network with copies of these parameters on a device."""
    network = make(shape)
    gluon = structural_parameters(network)
    for name, parameter in parameters.items():
        gluon[name].grad_req = "write" if parameter.is_trained else "null"
        gluon[name].lr_mult = parameter.rate
        gluon[name].row_moments = parameter.row_moments
    network.initialize(mx.init.Zero(), ctx=device)
    for name, parameter in parameters.items():
        gluon[name].set_data(mx.nd.array(parameter.value))  # safe before the first inference pass, see ``set_values``
    return network


def trained(network: Network) -> dict[str, Any]:
    """Return the Gluon parameters that are trained, by Gluon's names."""
    return {name: p for name, p in network.collect_params().items() if p.grad_req != "null"}


def values(network: Network) -> Arrays:
    """Copy all parameters as float32 arrays, by structural name."""
    return {name: p.data().asnumpy() for name, p in structural_parameters(network).items()}


def set_values(network: Network, arrays: Arrays) -> None:
    """Set all parameters by structural name, and read them back.

    After an inference pass on the CPU, weights are in oneDNN's own layout, in which ``set_data`` and
    ``load_parameters`` of MXNet 1.9.1 fail asynchronously and leave the old values. A cast restores the plain layout.

    Raises:
        UserError: A name or shape differs from the network's, or a value is not finite.
        RuntimeError: The values did not take effect.
    """
    check(arrays, network.shape)
    parameters = structural_parameters(network)
    network.cast("float32")
    for name, parameter in parameters.items():
        parameter.set_data(mx.nd.array(arrays[name], dtype="float32"))
    mx.nd.waitall()
    for name, array in values(network).items():
        if not np.array_equal(array, arrays[name].astype(np.float32)):
            raise RuntimeError(f"{name} did not take the value that was set")
