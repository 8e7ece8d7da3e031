"""Values of the network's parameters: initialising, reading, setting, and files in MXNet's own format.

Everything here speaks of plain NumPy arrays under the structural names of ``Crepe`` (``0.weight`` … ``14.bias``),
which are those of the notebook's network, so that parameter files fit both ways.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
from pathlib import Path
from typing import Any

import mxnet as mx
import numpy as np

from crepe_dist.errors import UserError
from crepe_dist.files import sync
from crepe_dist.model import params_file
from crepe_dist.model.network import CONVOLUTIONS, Crepe, Shape, lengths
from crepe_dist.model.options import Initialisation, ModelOptions

Arrays = dict[str, np.ndarray]
CONVOLUTION_NAMES = ("0", "2", "4", "5", "6", "7")
DENSE_NAMES = ("10", "12", "14")
# Names that `save_params` and `collect_params().save` of older Gluon wrote: hybridsequential0_conv3_weight, …
OLD_NAME = re.compile(r"(?:arg:)?(?:\w+_)?(conv|dense)(\d+)_(weight|bias)")
LARGE_FILTERS = 1024
OTHER = "name the parameters of such a network: a .params file or a run folder"


def build(shape: Shape, options: ModelOptions, device: Any, seed: int) -> Crepe:
    """A network on ``device``, initialised from ``seed``, compiled unless ``options.hybridize`` is off.

    Raises:
        UserError: documents too short for the network.
    """
    if lengths(shape.feature_len)[-1] < 1:
        raise UserError(
            f"documents of {shape.feature_len} characters are too short for this network",
            "six convolutions and three pools need at least 123",
            "prepare the data with --feature-len 123 or more",
        )
    mx.random.seed(seed)
    network = Crepe(shape)
    network.initialize(_initializer(options.initialisation, shape.filters), ctx=device)
    if options.initialisation == "paper":
        sigma = _paper_sigma(shape.filters)
        for name, parameter in network._collect_params_with_prefix().items():
            if name.endswith("bias"):
                parameter.set_data(mx.nd.random.normal(0, sigma, shape=parameter.shape))
    if options.hybridize:
        network.hybridize(static_alloc=True, static_shape=True)
    return network


def _initializer(initialisation: Initialisation, filters: int) -> Any:
    if initialisation == "paper":
        return mx.init.Normal(_paper_sigma(filters))
    if initialisation == "xavier":
        return mx.init.Xavier(magnitude=2.24)
    return mx.init.Xavier(rnd_type="gaussian", factor_type="in", magnitude=2)


def _paper_sigma(filters: int) -> float:
    """Section 2.5 of the paper: 0.02 for the large network, 0.05 for the small; weights and biases alike."""
    return 0.02 if filters >= LARGE_FILTERS else 0.05


def values(network: Crepe) -> Arrays:
    """Copies of all parameters, float32."""
    return {name: p.data().asnumpy() for name, p in network._collect_params_with_prefix().items()}


def digest(network: Crepe) -> int:
    """A checksum of all parameters' bits, below 2^53; equal bits give an equal one, and few others do."""
    sums = []
    for array in values(network).values():
        words = array.reshape(-1).view(np.uint32)
        sums += [np.add.reduce(words, dtype=np.uint64), np.uint64(np.bitwise_xor.reduce(words))]
    return int.from_bytes(hashlib.sha256(np.array(sums, np.uint64).tobytes()).digest()[:6], "little")


def set_values(network: Crepe, arrays: Arrays) -> None:
    """Gives every parameter the value of its name, also after an inference pass, and reads it back.

    After an inference pass on the CPU the weights are in oneDNN's own layout; in MXNet 1.9.1 ``set_data`` and
    ``load_parameters`` then fail asynchronously and leave the old values. A cast puts them back into the plain layout.

    Raises:
        UserError: a name or shape that is not the network's, or a value that is not finite.
        RuntimeError: the values did not take effect.
    """
    parameters = network._collect_params_with_prefix()
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
    gradients = {name: parameter._grad for name, parameter in parameters.items()}
    network.cast("float32")
    for name, parameter in parameters.items():
        parameter._grad = gradients[name]  # the cast made new ones, but they may lie where others look for them
        mx.autograd.mark_variables(parameter.list_data(), parameter.list_grad(), parameter.grad_req)
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


def shape_of(arrays: Arrays, alphabet_size: int, feature_len: int, dropout: float = 0.5) -> Shape:
    """The shape of the network that these parameters belong to.

    Raises:
        UserError: they are not a Crepe's, or not for this alphabet and length.
    """
    try:
        filters, channels, _ = arrays["0.weight"].shape
        units, width = arrays["10.weight"].shape
        classes, _ = arrays["14.weight"].shape
    except (KeyError, ValueError) as error:
        raise UserError(
            "these are not the parameters of a Crepe network", f"{error} is missing or misshapen", OTHER
        ) from error
    if not (filters and units and classes):
        raise UserError("these are not the parameters of a Crepe network", "a layer has no outputs", OTHER)
    if channels != alphabet_size:
        raise UserError(
            f"the parameters read {channels} characters, the encoding has {alphabet_size}",
            remedy="give the --mode with which they were trained",
        )
    if width != lengths(feature_len)[-1] * filters:
        raise UserError(
            f"the parameters are not for documents of {feature_len} characters",
            f"their first dense layer has {width} inputs; {feature_len} characters give "
            f"{lengths(feature_len)[-1] * filters}",
            "give the --feature-len with which they were trained",
        )
    shape = Shape(alphabet_size, feature_len, classes, filters, units, dropout)
    for name, expected in _shapes(shape).items():
        if name not in arrays or arrays[name].shape != expected:
            found = f"has {list(arrays[name].shape)} instead of {list(expected)}" if name in arrays else "is missing"
            raise UserError("these are not the parameters of a Crepe network", f"{name} {found}", OTHER)
    return shape


def _shapes(shape: Shape) -> dict[str, tuple[int, ...]]:
    """Of every parameter, by name. Known before a network is built, since that takes memory by the largest of them."""
    channels = shape.alphabet_size
    found: dict[str, tuple[int, ...]] = {}
    for name, (kernel, _) in zip(CONVOLUTION_NAMES, CONVOLUTIONS):
        found |= {f"{name}.weight": (shape.filters, channels, kernel), f"{name}.bias": (shape.filters,)}
        channels = shape.filters
    width = lengths(shape.feature_len)[-1] * shape.filters
    for name, units in zip(DENSE_NAMES, (shape.units, shape.units, shape.classes)):
        found |= {f"{name}.weight": (units, width), f"{name}.bias": (units,)}
        width = units
    return found
