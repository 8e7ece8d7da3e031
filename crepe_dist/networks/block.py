"""Building Gluon networks, and reading and setting their parameters as NumPy arrays under structural names."""

from __future__ import annotations

import hashlib
from typing import Any, Union

import mxnet as mx
import numpy as np

from crepe_dist.model.crepe import CrepeShape
from crepe_dist.model.ngrams import NGramShape
from crepe_dist.model.paper import PaperShape
from crepe_dist.model.parameters import Arrays, check
from crepe_dist.model.shape import Shape
from crepe_dist.mxnet_internals import set_gradients, structural_parameters
from crepe_dist.networks.crepe_block import Crepe
from crepe_dist.networks.ngrams_block import NGrams
from crepe_dist.networks.paper_block import Paper, build_paper
from crepe_dist.settings.model_options import ModelOptions

Network = Union[Crepe, NGrams, Paper]


def make(shape: Shape, **kwargs: Any) -> Network:
    """Make an uninitialised network; ``kwargs`` go to Gluon's constructor."""
    if isinstance(shape, CrepeShape):
        return Crepe(shape, **kwargs)
    if isinstance(shape, NGramShape):
        return NGrams(shape, **kwargs)
    assert isinstance(shape, PaperShape)
    return Paper(shape, **kwargs)


def build(shape: Shape, options: ModelOptions, device: Any, seed: int) -> Network:
    """Build and initialise a network on ``device``; hybridize it if ``options.hybridize`` is set.

    Raises:
        UserError: The documents are too short for the network.
    """
    mx.random.seed(seed)
    if isinstance(shape, PaperShape):
        network: Network = build_paper(shape, options, device)
    else:
        network = make(shape)
        network.initialize(ctx=device)
    if options.hybridize:
        network.hybridize(static_alloc=True, static_shape=True)
    return network


def trained(network: Network) -> dict[str, Any]:
    """Return the Gluon parameters that are trained, by Gluon's names."""
    counted = {network.ngrams.significant.name} if network.ngrams else set()
    return {name: p for name, p in network.collect_params().items() if name not in counted}


def values(network: Network) -> Arrays:
    """Copy all parameters as float32 arrays, by structural name."""
    return {name: p.data().asnumpy() for name, p in structural_parameters(network).items()}


def digest(network: Network) -> int:
    """Return a checksum of all parameters, below 2^48, for comparing replicas bit by bit."""
    sums = []
    for array in values(network).values():
        words = array.reshape(-1).view(np.uint32)
        sums += [np.add.reduce(words, dtype=np.uint64), np.uint64(np.bitwise_xor.reduce(words))]
    return int.from_bytes(hashlib.sha256(np.array(sums, np.uint64).tobytes()).digest()[:6], "little")


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
    gradients = {name: parameter.list_grad() for name, parameter in parameters.items() if parameter.grad_req != "null"}
    network.cast("float32")
    for name, parameter in parameters.items():
        if name in gradients:
            set_gradients(parameter, gradients[name])  # the cast made new arrays, but others may hold the old ones
        parameter.set_data(mx.nd.array(arrays[name], dtype="float32"))
    mx.nd.waitall()
    for name, array in values(network).items():
        if not np.array_equal(array, arrays[name].astype(np.float32)):
            raise RuntimeError(f"{name} did not take the value that was set")
