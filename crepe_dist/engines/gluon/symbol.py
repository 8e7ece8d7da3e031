"""Export of a network as MXNet's symbol and parameters."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import mxnet as mx
import numpy as np
import numpy.typing as npt

from crepe_dist.data.alphabet import Codes
from crepe_dist.data.batch import pack
from crepe_dist.engines.gluon import block
from crepe_dist.model import parameters
from crepe_dist.model.parameters import Arrays
from crepe_dist.model.shape import Shape
from crepe_dist.mxnet_internals import host_array, structural_parameters

BATCH = 8  # texts; MXNet's own operators need much memory


def write_symbol(
    shape: Shape, arrays: Arrays, temperature: float, symbol: Path, values: Path, *, several: bool = False
) -> Callable[[Codes], npt.NDArray[np.float32]]:
    """Write a network's symbol, whose logits are divided by a temperature, and its parameters.

    Args:
        several: the classes are independent.

    Returns:
        Function that computes probabilities with the written files: uint8 [n, feature_len] → float32 [n, classes], for
        at most ``BATCH`` rows.
    """
    # A fixed prefix: Gluon's default names count the networks of this process.
    network = block.make(shape, prefix=f"{shape.kind}_")
    names, targets = shape.input_names, structural_parameters(network)
    (network(*map(mx.sym.var, names)) / temperature).save(str(symbol))
    parameters.save({f"arg:{target.name}": arrays[name] for name, target in targets.items()}, values)
    read_back = mx.gluon.SymbolBlock.imports(str(symbol), list(names), str(values), ctx=mx.cpu())

    def probabilities(codes: Codes) -> npt.NDArray[np.float32]:
        batch = pack(codes, np.zeros(len(codes), np.int32), len(codes), len(codes))
        extra = (host_array(array) for array in network.prepare(batch).extra)
        inputs = network.inputs(mx.nd.array(codes, dtype="uint8"), *extra)
        logits = read_back(*inputs)
        return np.asarray((mx.nd.sigmoid(logits) if several else mx.nd.softmax(logits)).asnumpy())

    return probabilities
