"""Reader and writer of weights files. The network configuration is inferred from the parameters.

Parameters are NumPy arrays with Gluon's structural names. The paper's network has ``0.weight`` … ``14.bias``, the names
of the original Gluon notebook, so that files are interchangeable. The n-gram network has ``weight``, ``bias`` and
``significant``. Crepe has the parameters of its two branches with the prefixes ``ngrams.`` and ``tower.``. Checkpoints
omit rows of zeros in embedding tables; see ``to_file_arrays``.

A *model folder* is a checkpoint without its run. It contains the weights file ``model.safetensors``, which other
programs can read, and the metadata file ``model.json``.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file
from safetensors.numpy import save as to_safetensors

from crepe_dist import network_registry
from crepe_dist.data.arrays import Arrays
from crepe_dist.errors import UserError
from crepe_dist.files.atomic_write import atomic_replace
from crepe_dist.files.safe_read import open_regular
from crepe_dist.model import mxnet_params, quantization
from crepe_dist.model.network_config import MODEL_HINT, NOT_A_CREPE_MODEL, NetworkConfig

MODEL_FILE = "model.safetensors"  # Name of the weights file in a model folder.
SAFETENSORS = ".safetensors"


def save(arrays: Arrays, path: Path) -> None:
    """Write a ``.params`` file in the format of Gluon's ``save_parameters``, atomically."""
    with atomic_replace(path) as temporary:
        mxnet_params.write(temporary, arrays)


def to_file_arrays(arrays: Arrays, network: type[NetworkConfig]) -> Arrays:
    """Convert parameters to the arrays of a weights file of this package. Omit rows of zeros in tables."""
    tables = {*network.sparse_parameters, *network.buffers}
    if not tables:
        return arrays
    result = {quantization.MARK: np.array([quantization.VERSION], np.int64)}
    for name, array in arrays.items():
        result |= quantization.drop_zero_rows(name, array) if name in tables else {name: array}
    return result


def load(path: Path) -> Arrays:
    """Read parameters from a safetensors file, or from a ``.params`` file of this package or of the Gluon notebook.

    Compressed arrays are returned as ``CompressedArray``. Check their shapes with ``infer_config`` before you call
    ``CompressedArray.validate``.

    Raises:
        UserError: The file does not exist, is not a weights file, or does not belong to a network of this package.
    """
    if not path.is_file():
        raise UserError(f"{path} does not exist", remedy="give a .params file or a run folder")
    read, what = mxnet_params.read, "file of MXNet parameters"
    if path.suffix == SAFETENSORS:
        read, what = read_safetensors, "safetensors file"
    try:
        arrays = quantization.group_compressed(read(path))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is not a {what}", str(error), MODEL_HINT) from error
    paper = network_registry.import_network_module(network_registry.LEGACY_NETWORK, "config")
    renamed: Arrays = paper.rename_notebook_parameters(path, arrays)
    return renamed


def config_class(network: Mapping[str, Any]) -> type[NetworkConfig]:
    """Return the ``NetworkConfig`` class for the network entries of a checkpoint's metadata."""
    kind = network.get("kind", network_registry.LEGACY_NETWORK)
    if not isinstance(kind, str) or kind not in network_registry.NETWORKS:
        raise ValueError(f"there is no network {str(kind)[:40]!r} among {', '.join(network_registry.NETWORKS)}")
    config: type[NetworkConfig] = network_registry.config_class(kind)
    return config


def infer_config(
    arrays: Arrays, alphabet_size: int, feature_len: int, network: Mapping[str, Any] | None = None
) -> NetworkConfig:
    """Infer the network's configuration from its parameters.

    Args:
        arrays: Parameters by structural name.
        alphabet_size: Number of ids of the encoder.
        feature_len: Number of ids per document.
        network: Network entries of the checkpoint's metadata (see ``NetworkConfig.settings``), already validated.

    Raises:
        UserError: The parameters do not belong to such a network, or to this alphabet or length.
    """
    network = network or {}
    config = config_class(network).of_parameters(arrays, alphabet_size, feature_len, network)
    for name, expected in config.parameter_shapes().items():
        if name not in arrays or arrays[name].shape != expected:
            problem = f"has {list(arrays[name].shape)} instead of {list(expected)}" if name in arrays else "is missing"
            raise UserError(NOT_A_CREPE_MODEL, f"{name} {problem}", MODEL_HINT)
    return config


def decompress_all(arrays: Arrays, config: NetworkConfig) -> Arrays:
    """Decompress all compressed arrays. Raise the same errors as ``validate_compressed``."""
    return {name: quantization.decompress(array) for name, array in validate_compressed(arrays, config).items()}


def validate_compressed(arrays: Arrays, config: NetworkConfig) -> Arrays:
    """Convert compressed arrays to ``RowReadableArray``.

    The names and shapes must match the network; see ``infer_config``.

    Raises:
        UserError: The names differ, or the arrays are too large or damaged.
    """
    packed: dict[str, Any] = {
        name: array for name, array in arrays.items() if isinstance(array, quantization.CompressedArray)
    }
    if not packed:
        return arrays
    _check_names(arrays, config)
    if config.num_parameters > quantization.MAX_NUMBERS:
        limit = f"the network has {config.num_parameters:,} parameters; the limit is {quantization.MAX_NUMBERS:,}"
        raise UserError("the parameters cannot be unpacked", limit, MODEL_HINT)
    try:
        return {**arrays, **{name: array.validate() for name, array in packed.items()}}
    except ValueError as error:
        raise UserError("the compressed parameters are damaged", str(error), MODEL_HINT) from error


def _check_names(arrays: Arrays, config: NetworkConfig) -> None:
    if odd := ", ".join(sorted(arrays.keys() ^ config.parameter_shapes().keys())[:6]):
        raise UserError(
            "the parameters do not belong to this network", f"missing or unexpected names: {odd}", MODEL_HINT
        )


def validate(arrays: Arrays, config: NetworkConfig) -> None:
    """Check that the names and shapes of parameters match a network, and that all values are finite.

    Raises:
        UserError: A name or shape differs from the network, or a value is not finite.
    """
    _check_names(arrays, config)
    expected = config.parameter_shapes()
    for name, array in arrays.items():
        if tuple(array.shape) != expected[name]:
            raise UserError(
                "the parameters do not belong to this network",
                f"{name} has shape {list(array.shape)}, the network expects {list(expected[name])}",
                "give the encoding, length, classes and sizes that they were trained with",
            )
        if not _finite(array.values if isinstance(array, quantization.RowReadableArray) else array):
            raise UserError("the parameters hold non-finite values", f"{name} has NaN or infinity", MODEL_HINT)


def _finite(array: Any) -> bool:
    if array is None:  # A compressed array of ones has no values.
        return True
    # For float16, comparing the bit patterns is 50 times as fast as isfinite.
    if array.dtype == np.float16:
        return bool(array.view(np.int16).max(initial=0) < 0x7C00 and array.view(np.uint16).max(initial=0) < 0xFC00)
    # A value that is too large for float32 becomes infinite.
    with np.errstate(over="ignore"):
        return bool(np.isfinite(array.astype(np.float32, copy=False)).all())


def read_safetensors(path: Path) -> Arrays:
    """Read the arrays of a file, by name.

    The safetensors library compares all sizes with the size of the file before it allocates memory.

    Raises:
        OSError: The file cannot be read.
        ValueError: The file is not a complete safetensors file, is too large, or contains a dtype that NumPy lacks.
    """
    with open_regular(path) as stream:
        size = os.fstat(stream.fileno()).st_size
    if size > mxnet_params.MAX_FILE:
        raise ValueError(f"it has {size:,} bytes; the limit is {mxnet_params.MAX_FILE:,}")
    try:
        return dict(load_file(str(path)))
    except SafetensorError as error:
        raise ValueError(str(error)) from error
    except (AttributeError, KeyError, TypeError) as error:  # safetensors looks up the dtype by its name in NumPy.
        raise ValueError(f"it holds numbers of a type that NumPy lacks: {error}") from error


def write_safetensors(arrays: Arrays, path: Path) -> None:
    """Write arrays to a safetensors file, atomically."""
    with atomic_replace(path) as temporary:
        temporary.write_bytes(to_safetensors({name: np.ascontiguousarray(array) for name, array in arrays.items()}))
