"""Reader and writer of MXNet's weights files (``.params``).

MXNet's own reader is not used, because it does not check the sizes that a file declares. The format is defined by
``src/ndarray/ndarray.cc`` of MXNet 1.9.1. It is little-endian::

    uint64 0x112, uint64 reserved, uint64 arrays, the arrays, uint64 names, each uint64 length and UTF-8

    array: uint32 magic, int32 storage (0: dense), int32 dimensions, int64 each,
           int32 type and int32 index of the original device, int32 dtype, the values
"""

import math
import os
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from crepe_dist.files.safe_read import open_regular

MAGIC = 0x112  # Magic number of a file.
ARRAY = 0xF993FAC9  # Magic number of an array.
DENSE = 0  # Storage type of a dense array.
CPU = 1  # Device type of a CPU.
# Dtypes by their number in mshadow/base.h. bfloat16 and bool are missing, because parameters never have these types.
TYPES: dict[int, np.dtype[Any]] = {
    0: np.dtype("<f4"), 1: np.dtype("<f8"), 2: np.dtype("<f2"), 3: np.dtype("u1"), 4: np.dtype("<i4"),
    5: np.dtype("i1"), 6: np.dtype("<i8"),
}  # fmt: skip
MAX_FILE = 1 << 32  # Maximum size of a file in bytes: ten times the paper's large network in float32.
MAX_ARRAYS = 10_000  # Maximum number of arrays in a file.
MAX_DIMENSIONS = 8  # Maximum number of dimensions of an array.
MAX_NAME = 1 << 10  # Maximum length of a name in bytes.


def read(path: Path) -> dict[str, np.ndarray]:
    """Read the arrays of a file, by name.

    All sizes are compared with the size of the file before memory is allocated.

    Raises:
        OSError: The file cannot be read.
        ValueError: The file is not a complete weights file of MXNet 1 with named, dense arrays.
    """
    with open_regular(path) as stream:
        return _Reader(stream).arrays()


def write(path: Path, arrays: Mapping[str, np.ndarray[Any, Any]]) -> None:
    """Write named arrays. The file is byte-identical to the file that ``mx.nd.save`` writes.

    Args:
        arrays: Arrays by name. Their dtypes are in ``TYPES``, and each has at least one dimension.
    """
    flags = {kind: flag for flag, kind in TYPES.items()}
    with path.open("wb") as stream:
        stream.write(struct.pack("<QQQ", MAGIC, 0, len(arrays)))
        for array in arrays.values():
            values = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
            stream.write(struct.pack("<Iii", ARRAY, DENSE, values.ndim))
            stream.write(struct.pack(f"<{values.ndim}q", *values.shape))
            stream.write(struct.pack("<iii", CPU, 0, flags[values.dtype]))
            stream.write(values.data)
        stream.write(struct.pack("<Q", len(arrays)))
        for name in map(str.encode, arrays):
            stream.write(struct.pack("<Q", len(name)) + name)


class _Reader:
    """Parser of one file."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._left = os.fstat(stream.fileno()).st_size
        if self._left > MAX_FILE:
            raise ValueError(f"it has {self._left:,} bytes; the limit is {MAX_FILE:,}")

    def arrays(self) -> dict[str, np.ndarray]:
        """Read the whole file."""
        if self._left < 8 or self._numbers("Q") != (MAGIC,):
            raise ValueError("it does not start with the magic number of such files")
        _, count = self._numbers("QQ")
        if count > MAX_ARRAYS:
            raise ValueError(f"it claims to hold {count:,} arrays; the limit is {MAX_ARRAYS:,}")
        arrays = [self._array(number) for number in range(count)]
        (named,) = self._numbers("Q")
        if named != count:
            raise ValueError(f"it has {count:,} arrays and {named:,} names")
        result = dict(zip([self._name(number) for number in range(named)], arrays))
        if len(result) < count:
            raise ValueError("two arrays have the same name")
        if self._left:
            raise ValueError(f"{self._left:,} extra bytes follow its end")
        return result

    def _array(self, number: int) -> np.ndarray:
        magic, storage, dimensions = self._numbers("Iii")
        if (magic, storage) != (ARRAY, DENSE) or not 1 <= dimensions <= MAX_DIMENSIONS:
            raise ValueError(f"array {number} is not a dense array of MXNet 1 with 1 to {MAX_DIMENSIONS} dimensions")
        shape = self._numbers("q" * dimensions)
        _, _, flag = self._numbers("iii")
        if flag not in TYPES:
            raise ValueError(f"array {number} has an unknown dtype ({flag})")
        size = math.prod(shape) * TYPES[flag].itemsize
        # A dimension of 0 makes the product 0, so the product of the non-zero dimensions is also checked.
        if min(shape) < 0 or math.prod(filter(None, shape)) >= 1 << 60 or size > self._left:
            raise ValueError(f"array {number} has the shape {list(shape)}, and {self._left:,} bytes follow")
        self._left -= size
        return np.fromfile(self._stream, TYPES[flag], math.prod(shape)).reshape(shape)

    def _name(self, number: int) -> str:
        (length,) = self._numbers("Q")
        if length > MAX_NAME:
            raise ValueError(f"the name of array {number} has {length:,} bytes; the limit is {MAX_NAME:,}")
        try:
            return self._take(length).decode("utf-8")
        except UnicodeDecodeError:
            raise ValueError(f"the name of array {number} is not UTF-8") from None

    def _numbers(self, letters: str) -> tuple[int, ...]:
        return struct.unpack(f"<{letters}", self._take(struct.calcsize(f"<{letters}")))

    def _take(self, length: int) -> bytes:
        if length > self._left:
            raise ValueError("it ends in the middle")
        self._left -= length
        return self._stream.read(length)
