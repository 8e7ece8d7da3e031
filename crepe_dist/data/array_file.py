"""Arrays in NumPy's ``.npy`` files, mapped from disk; only what ``prepare`` writes is taken for one.

NumPy's own reader hands the header to Python's parser, whose memory a hostile one can fill, and trusts it for the rest.
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

BEGINNING = b"\x93NUMPY\x01\x00"  # version 1.0 of numpy.lib.format: two bytes of length follow, and a Python literal
SHAPE = rb"[0-9]{1,18}(?:, [0-9]{1,18}){0,7},?"
HEADER = re.compile(rb"\{'descr': '([<|][a-z][0-9])', 'fortran_order': False, 'shape': \((" + SHAPE + rb")\), \} *\n")
LONGEST = 1 << 10


def map_array(path: Path, kind: npt.DTypeLike, shape: tuple[int, ...]) -> Any:
    """A file's array, read-only; it must be of this kind and shape, and the file end where the array ends.

    Raises:
        OSError, ValueError: it cannot be read, or is something else. A symbolic link is refused.
    """
    dtype = np.dtype(kind)
    with open_regular(path, follow=False) as stream:
        head = stream.read(len(BEGINNING) + 2 + LONGEST)
        start = len(BEGINNING) + 2
        length = int.from_bytes(head[start - 2 : start], "little")
        written = HEADER.fullmatch(head[start : start + length])
        if not head.startswith(BEGINNING) or length > LONGEST or written is None:
            raise ValueError(f"{path.name} is no array as prepare writes it")
        found = tuple(map(int, re.findall(rb"[0-9]+", written[2])))
        if written[1].decode() != dtype.str or found != shape:
            raise ValueError(f"{path.name} is {written[1].decode()} {list(found)} instead of {dtype.str} {list(shape)}")
        size = os.fstat(stream.fileno()).st_size
        if size != start + length + math.prod(shape) * dtype.itemsize:
            raise ValueError(f"{path.name} has {size:,} bytes, which is not the size of {list(shape)}")
        return np.memmap(stream, dtype=dtype, mode="r", offset=start + length, shape=shape)
