"""Parameters as safetensors, which other programs read too, and which need no MXNet.

A *model folder* holds ``model.safetensors`` and its description, ``model.json``: a checkpoint without its run.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from crepe_dist.files import open_regular, replacing

NAME = "model.safetensors"
SUFFIX = ".safetensors"
MAX_FILE = 1 << 32  # bytes, ten times the paper's large network in float32


def read(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    """Read the arrays of a file by name.

    The library checks all sizes against the file's before it allocates memory.

    Raises:
        OSError: The file cannot be read.
        ValueError: The file is not a complete safetensors file, is too large, or has a type that NumPy lacks.
    """
    with open_regular(path) as stream:
        size = os.fstat(stream.fileno()).st_size
    if size > MAX_FILE:
        raise ValueError(f"it has {size:,} bytes; the limit is {MAX_FILE:,}")
    try:
        return dict(load_file(str(path)))
    except SafetensorError as error:
        raise ValueError(str(error)) from error
    except (AttributeError, KeyError, TypeError) as error:  # safetensors looks the type up in NumPy
        raise ValueError(f"it holds numbers of a type that NumPy lacks: {error}") from error


def write(arrays: dict[str, np.ndarray[Any, Any]], path: Path) -> None:
    """Write arrays atomically."""
    with replacing(path) as temporary:
        temporary.write_bytes(save({name: np.ascontiguousarray(array) for name, array in arrays.items()}))
