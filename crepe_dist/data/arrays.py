"""Arrays and byte strings of a data set folder, memory-mapped.

NumPy's own reader passes the header to Python's parser, which a malicious header can make run out of memory. The byte
strings of a shard's rows, such as their texts, are a file of all of them, and one of where each starts.
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

TEXTS, IDS = "texts", "ids"
_OFFSETS = {TEXTS: "offsets", IDS: "id_offsets"}
MAGIC = b"\x93NUMPY\x01\x00"  # numpy.lib.format version 1.0; a two-byte length and a Python literal follow
SHAPE = rb"[0-9]{1,18}(?:, [0-9]{1,18}){0,7},?"
HEADER = re.compile(rb"\{'descr': '([<|][a-z][0-9])', 'fortran_order': False, 'shape': \((" + SHAPE + rb")\), \} *\n")
MAX_HEADER = 1 << 10  # bytes


def map_array(path: Path, kind: npt.DTypeLike, shape: tuple[int, ...]) -> Any:
    """Memory-map the array in a file, read-only, after checking its dtype and shape.

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
        written_shape = tuple(map(int, re.findall(rb"[0-9]+", written[2])))
        if written[1].decode() != dtype.str or written_shape != shape:
            raise ValueError(
                f"{path.name} is {written[1].decode()} {list(written_shape)} instead of {dtype.str} {list(shape)}"
            )
        size = os.fstat(stream.fileno()).st_size
        if size != start + length + math.prod(shape) * dtype.itemsize:
            raise ValueError(f"{path.name} has {size:,} bytes, which is not the size of {list(shape)}")
        return np.memmap(stream, dtype=dtype, mode="r", offset=start + length, shape=shape)


def string_files(split: str, kind: str, shard: int) -> tuple[str, str]:
    """Return the names of the file of the strings, and of that of their offsets, int64 [rows + 1]."""
    return f"{split}.{kind}-{shard:05d}.bin", f"{split}.{_OFFSETS[kind]}-{shard:05d}.npy"


def check_strings(folder: Path, split: str, kind: str, shard: int, rows: int) -> None:
    """Raise ``ValueError`` if the offsets do not match the strings."""
    strings, offsets = string_files(split, kind, shard)
    starts = map_array(folder / offsets, np.int64, (rows + 1,))
    if starts[0] != 0 or starts[-1] != (folder / strings).stat().st_size or (starts[1:] < starts[:-1]).any():
        raise ValueError(f"{offsets} does not match the {kind}")


def read_string(folder: Path, split: str, kind: str, shard: int, rows: int, row: int) -> str:
    """Read the string of one row of a shard."""
    strings, offsets = string_files(split, kind, shard)
    start, end = map_array(folder / offsets, np.int64, (rows + 1,))[row : row + 2].tolist()
    with open_regular(folder / strings, follow=False) as stream:
        stream.seek(start)
        return stream.read(end - start).decode("utf-8", "replace")
