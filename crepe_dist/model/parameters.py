"""Building networks, and reading, setting, saving and loading their parameters.

Parameters are NumPy arrays under Gluon's structural names: ``0.weight`` … ``14.bias`` for ``Paper``, as in the
notebook's network, so that their files are interchangeable; ``weight``, ``bias`` and ``significant`` for ``NGrams``;
both kinds of names, behind ``ngrams.`` and ``tower.``, for ``Crepe``.
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
from crepe_dist.model import params_file, tensors_file
from crepe_dist.model.crepe import Crepe, CrepeShape
from crepe_dist.model.ngrams import NGrams, NGramShape
from crepe_dist.model.paper import CONVOLUTION_NAMES, DENSE_NAMES, Paper, PaperShape
from crepe_dist.model.shape import GIVE_ANOTHER, NOT_OURS, Shape
from crepe_dist.mxnet_internals import set_gradients, structural_parameters
from crepe_dist.settings.model_options import ModelOptions

Arrays = dict[str, np.ndarray]
Network = Union[Crepe, NGrams, Paper]
NETWORKS: dict[str, type[Shape]] = {each.kind: each for each in (CrepeShape, NGramShape, PaperShape)}
# Names written by `save_params` and `collect_params().save` in older Gluon versions: hybridsequential0_conv3_weight, …
OLD_NAME = re.compile(r"(?:arg:)?(?:\w+_)?(conv|dense)(\d+)_(weight|bias)")


def build(shape: Shape, options: ModelOptions, device: Any, seed: int) -> Network:
    """Build and initialise a network on ``device``; hybridize it if ``options.hybridize`` is set.

    Raises:
        UserError: The documents are too short for the network.
    """
    mx.random.seed(seed)
    network: Network = shape.build(options, device)
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
    parameters = structural_parameters(network)
    if arrays.keys() != parameters.keys():
        odd = ", ".join(sorted(arrays.keys() ^ parameters.keys())[:6])
        raise UserError("the parameters do not belong to this network", f"names on one side only: {odd}", GIVE_ANOTHER)
    for name, parameter in parameters.items():
        if tuple(arrays[name].shape) != tuple(parameter.shape):
            raise UserError(
                "the parameters do not belong to this network",
                f"{name} has shape {list(arrays[name].shape)}, the network expects {list(parameter.shape)}",
                "give the encoding, length, classes and sizes that they were trained with",
            )
        with np.errstate(over="ignore"):  # a value too large for float32 becomes infinite
            finite = np.isfinite(arrays[name].astype(np.float32)).all()
        if not finite:
            raise UserError("the parameters hold non-finite values", f"{name} has NaN or infinity", GIVE_ANOTHER)
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


def save(arrays: Arrays, path: Path) -> None:
    """Write a ``.params`` file in the format of Gluon's ``save_parameters``, atomically.

    Raises:
        OSError: The file cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        mx.nd.save(str(temporary), {name: mx.nd.array(array, dtype=array.dtype) for name, array in arrays.items()})
        sync(temporary)
        load(temporary)  # MXNet does not notice if the disk is full when it flushes its last bytes
    except (mx.MXNetError, UserError) as error:
        temporary.unlink(missing_ok=True)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from error
    temporary.replace(path)


def load(path: Path) -> Arrays:
    """Read parameters: safetensors, or a ``.params`` file written by this package or by the notebook.

    Raises:
        UserError: The file does not exist, is not a parameter file, or does not belong to one of our networks.
    """
    if not path.is_file():
        raise UserError(f"{path} does not exist", remedy="give a .params file or a run folder")
    read, what = params_file.read, "file of MXNet parameters"
    if path.suffix == tensors_file.SUFFIX:
        read, what = tensors_file.read, "safetensors file"
    try:
        loaded = read(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is not a {what}", str(error), GIVE_ANOTHER) from error
    if not isinstance(loaded, dict):
        raise UserError(
            f"{path} holds arrays without names", "it was not written by save_parameters or save_params", GIVE_ANOTHER
        )
    old = {OLD_NAME.fullmatch(name) for name in loaded}
    return _renamed(path, loaded) if None not in old else loaded


def _renamed(path: Path, arrays: Arrays) -> Arrays:
    """Map old-style names to structural names by the order of the layers; their numbers may start anywhere."""
    names: dict[str, str] = {}
    for kind, targets in (("conv", CONVOLUTION_NAMES), ("dense", DENSE_NAMES)):
        matches = [match for match in map(OLD_NAME.fullmatch, arrays) if match and match[1] == kind]
        numbers = sorted({int(match[2]) for match in matches})
        if len(numbers) != len(targets):
            raise UserError(
                f"{path} is not the paper's network",
                f"it has {len(numbers)} {kind} layers instead of {len(targets)}",
                GIVE_ANOTHER,
            )
        target = dict(zip(numbers, targets))
        names.update({match[0]: f"{target[int(match[2])]}.{match[3]}" for match in matches})
    return {names[name]: array for name, array in arrays.items()}


def shape_class(network: Mapping[str, Any]) -> type[Shape]:
    """Return the ``Shape`` class for the network entries of a checkpoint's description.

    Raises:
        ValueError: The network type is unknown.
    """
    kind = network.get("kind", PaperShape.kind)  # the oldest descriptions have no kind
    if kind == CrepeShape.kind and "filters" in network:
        kind = PaperShape.kind  # called crepe before there was another convolutional network
    if not isinstance(kind, str) or kind not in NETWORKS:
        raise ValueError(f"there is no network {str(kind)[:40]!r}")
    return NETWORKS[kind]


def shape_of(arrays: Arrays, alphabet_size: int, feature_len: int, network: Mapping[str, Any] | None = None) -> Shape:
    """Infer the network's configuration from its parameters.

    Args:
        arrays: parameters by structural name.
        alphabet_size: number of characters of the encoding.
        feature_len: characters per document.
        network: network entries of the checkpoint's description (see ``Shape.settings``), already validated.

    Raises:
        UserError: The parameters do not belong to such a network, or to this alphabet or length.
    """
    network = network or {}
    shape = shape_class(network).of_parameters(arrays, alphabet_size, feature_len, network)
    for name, expected in shape.parameter_shapes().items():
        if name not in arrays or arrays[name].shape != expected:
            found = f"has {list(arrays[name].shape)} instead of {list(expected)}" if name in arrays else "is missing"
            raise UserError(NOT_OURS, f"{name} {found}", GIVE_ANOTHER)
    return shape
