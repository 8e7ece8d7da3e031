"""Values of the network's parameters: initialising, reading, setting, and files in MXNet's own format.

Everything here speaks of plain NumPy arrays under the structural names of ``Crepe`` (``0.weight`` … ``14.bias``),
which are those of the notebook's network, so that parameter files fit both ways; or of ``NGrams`` (``weight``,
``bias``).
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Union

import mxnet as mx
import numpy as np

from crepe_dist.errors import UserError
from crepe_dist.files import sync
from crepe_dist.model import params_file
from crepe_dist.model.crepe import CONVOLUTION_NAMES, CONVOLUTIONS, DENSE_NAMES, Crepe, CrepeShape
from crepe_dist.model.ngrams import NGrams, NGramShape
from crepe_dist.model.shape import NOT_OURS, OTHER
from crepe_dist.mxnet_internals import set_gradients, structural_parameters
from crepe_dist.settings.model_options import ModelOptions

Arrays = dict[str, np.ndarray]
Network = Union[Crepe, NGrams]
NETWORKS: dict[str, type[CrepeShape] | type[NGramShape]] = {CrepeShape.kind: CrepeShape, NGramShape.kind: NGramShape}
# Names that `save_params` and `collect_params().save` of older Gluon wrote: hybridsequential0_conv3_weight, …
OLD_NAME = re.compile(r"(?:arg:)?(?:\w+_)?(conv|dense)(\d+)_(weight|bias)")


def build(shape: CrepeShape | NGramShape, options: ModelOptions, device: Any, seed: int) -> Network:
    """A network on ``device``, initialised from ``seed``, compiled unless ``options.hybridize`` is off.

    Raises:
        UserError: documents too short for the network.
    """
    mx.random.seed(seed)
    network: Network = shape.build(options, device)
    if options.hybridize:
        network.hybridize(static_alloc=True, static_shape=True)
    return network


def trained(network: Network) -> dict[str, Any]:
    """The Gluon parameters that have a gradient, by Gluon's names."""
    return {name: p for name, p in network.collect_params().items() if p.grad_req != "null"}


def values(network: Network) -> Arrays:
    """Copies of all parameters, float32."""
    return {name: p.data().asnumpy() for name, p in structural_parameters(network).items()}


def digest(network: Network) -> int:
    """A checksum of all parameters' bits, below 2^53; equal bits give an equal one, and few others do."""
    sums = []
    for array in values(network).values():
        words = array.reshape(-1).view(np.uint32)
        sums += [np.add.reduce(words, dtype=np.uint64), np.uint64(np.bitwise_xor.reduce(words))]
    return int.from_bytes(hashlib.sha256(np.array(sums, np.uint64).tobytes()).digest()[:6], "little")


def set_values(network: Network, arrays: Arrays) -> None:
    """Gives every parameter the value of its name, also after an inference pass, and reads it back.

    After an inference pass on the CPU the weights are in oneDNN's own layout; in MXNet 1.9.1 ``set_data`` and
    ``load_parameters`` then fail asynchronously and leave the old values. A cast puts them back into the plain layout.

    Raises:
        UserError: a name or shape that is not the network's, or a value that is not finite.
        RuntimeError: the values did not take effect.
    """
    parameters = structural_parameters(network)
    if arrays.keys() != parameters.keys():
        odd = ", ".join(sorted(arrays.keys() ^ parameters.keys())[:6])
        raise UserError("the parameters are not those of this network", f"names on one side only: {odd}", OTHER)
    for name, parameter in parameters.items():
        if tuple(arrays[name].shape) != tuple(parameter.shape):
            raise UserError(
                "the parameters are not those of this network",
                f"{name} is {list(arrays[name].shape)}, the network has {list(parameter.shape)}",
                "give the encoding, length, classes and sizes with which they were trained",
            )
        with np.errstate(over="ignore"):  # a number too large for float32 is none
            finite = np.isfinite(arrays[name].astype(np.float32)).all()
        if not finite:
            raise UserError("the parameters hold values that are not numbers", f"{name} has NaN or infinity", OTHER)
    gradients = {name: parameter.list_grad() for name, parameter in parameters.items() if parameter.grad_req != "null"}
    network.cast("float32")
    for name, parameter in parameters.items():
        if name in gradients:
            set_gradients(parameter, gradients[name])  # the cast made new ones, but they may lie where others look
        parameter.set_data(mx.nd.array(arrays[name], dtype="float32"))
    mx.nd.waitall()
    for name, array in values(network).items():
        if not np.array_equal(array, arrays[name].astype(np.float32)):
            raise RuntimeError(f"{name} did not take the value that was set")


def save(arrays: Arrays, path: Path) -> None:
    """Writes a ``.params`` file as Gluon's ``save_parameters`` does; it appears complete or not at all.

    Raises:
        OSError: it cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        mx.nd.save(str(temporary), {name: mx.nd.array(array, dtype=array.dtype) for name, array in arrays.items()})
        sync(temporary)
        load(temporary)  # MXNet does not notice if the last of its buffered bytes find no room
    except (mx.MXNetError, UserError) as error:
        temporary.unlink(missing_ok=True)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from error
    temporary.replace(path)


def load(path: Path) -> Arrays:
    """Reads a ``.params`` file of this package, or of the notebook by ``save_params`` or ``save_parameters``.

    Raises:
        UserError: no such file, not a parameter file, or not the parameters of a Crepe network.
    """
    if not path.is_file():
        raise UserError(f"{path} does not exist", remedy="give a .params file or a run folder")
    try:
        loaded = params_file.read(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is not a file of MXNet parameters", str(error), OTHER) from error
    if not isinstance(loaded, dict):
        raise UserError(
            f"{path} holds arrays without names", "it was not written by save_parameters or save_params", OTHER
        )
    old = {OLD_NAME.fullmatch(name) for name in loaded}
    return _renamed(path, loaded) if None not in old else loaded


def _renamed(path: Path, arrays: Arrays) -> Arrays:
    """Old-style names → structural ones. Only the order of the layers counts: their numbers start anywhere."""
    names: dict[str, str] = {}
    for kind, targets in (("conv", CONVOLUTION_NAMES), ("dense", DENSE_NAMES)):
        matches = [match for match in map(OLD_NAME.fullmatch, arrays) if match and match[1] == kind]
        numbers = sorted({int(match[2]) for match in matches})
        if len(numbers) != len(targets):
            raise UserError(
                f"{path} is not a Crepe network",
                f"it has {len(numbers)} {kind} layers; a Crepe has {len(CONVOLUTIONS)} conv and 3 dense layers",
                OTHER,
            )
        target = dict(zip(numbers, targets))
        names.update({match[0]: f"{target[int(match[2])]}.{match[3]}" for match in matches})
    return {names[name]: array for name, array in arrays.items()}


def shape_class(network: Mapping[str, Any]) -> type[CrepeShape] | type[NGramShape]:
    """Return the class of the shape that a description of a network (``Shape.settings``) is of.

    Raises:
        ValueError: there is no such network.
    """
    kind = network.get("kind", CrepeShape.kind)  # descriptions of old name none: there was one network only
    if not isinstance(kind, str) or kind not in NETWORKS:
        raise ValueError(f"there is no network {str(kind)[:40]!r}")
    return NETWORKS[kind]


def shape_of(
    arrays: Arrays, alphabet_size: int, feature_len: int, network: Mapping[str, Any] | None = None
) -> CrepeShape | NGramShape:
    """The shape of the network that these parameters belong to.

    Args:
        network: what the description beside a checkpoint says of it (``Shape.settings``), of numbers that can be.

    Raises:
        UserError: they are no such network's, or not for this alphabet and length.
    """
    network = network or {}
    shape = shape_class(network).of_parameters(arrays, alphabet_size, feature_len, network)
    for name, expected in shape.parameter_shapes().items():
        if name not in arrays or arrays[name].shape != expected:
            found = f"has {list(arrays[name].shape)} instead of {list(expected)}" if name in arrays else "is missing"
            raise UserError(NOT_OURS, f"{name} {found}", OTHER)
    return shape
