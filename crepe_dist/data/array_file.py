"""Strict, memory-mapping reader for the ``.npy`` files that ``prepare`` writes.

NumPy's own reader passes the header to Python's parser, which a malicious header can make run out of memory.
"""

from __future__ import annotations

import math
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from crepe_dist.files import open_regular

MAGIC = b"\x93NUMPY\x01\x00"  # numpy.lib.format version 1.0; a two-byte length and a Python literal follow
SHAPE = rb"[0-9]{1,18}(?:, [0-9]{1,18}){0,7},?"
HEADER = re.compile(rb"\{'descr': '([<|][a-z][0-9])', 'fortran_order': False, 'shape': \((" + SHAPE + rb")\), \} *\n")
MAX_HEADER = 1 << 10  # bytes


def map_array(path: Path, kind: npt.DTypeLike, shape: tuple[int, ...]) -> Any:
    """Memory-map the array in a file, read-only.

    Args:
        kind: expected dtype.
        shape: expected shape.

    Raises:
        OSError: The file cannot be read, or is a symbolic link.
        ValueError: The file is not an array written by ``prepare``, has another dtype or shape, or another size than
            the array.
    """
    dtype = np.dtype(kind)
    with open_regular(path, follow=False) as stream:
        head = stream.read(len(MAGIC) + 2 + MAX_HEADER)
        start = len(MAGIC) + 2
        length = int.from_bytes(head[start - 2 : start], "little")
        written = HEADER.fullmatch(head[start : start + length])
        if not head.startswith(MAGIC) or length > MAX_HEADER or written is None:
            raise ValueError(f"{path.name} is not an array written by prepare")
        found = tuple(map(int, re.findall(rb"[0-9]+", written[2])))
        if written[1].decode() != dtype.str or found != shape:
            raise ValueError(f"{path.name} is {written[1].decode()} {list(found)} instead of {dtype.str} {list(shape)}")
        size = os.fstat(stream.fileno()).st_size
        if size != start + length + math.prod(shape) * dtype.itemsize:
            raise ValueError(f"{path.name} has {size:,} bytes, which is not the size of {list(shape)}")
        return np.memmap(stream, dtype=dtype, mode="r", offset=start + length, shape=shape)
