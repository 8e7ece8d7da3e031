"""Reader and writer of MXNet's parameter files. MXNet's own reader trusts the sizes in a file without checking them.

The format, from ``src/ndarray/ndarray.cc`` of MXNet 1.9.1, is little-endian::

    uint64 0x112, uint64 reserved, uint64 arrays, the arrays, uint64 names (0 or as many), each uint64 length and UTF-8

    array, versions 3 and 2: uint32 magic, int32 storage (0: dense), shape; rest
           version 1:        uint32 magic, shape; rest
           legacy:           uint32 dimensions, uint32 each; rest
    shape: int32 dimensions, int64 each
    rest:  int32 type and int32 index of the original device, int32 dtype, the values

Zero dimensions mean a scalar in version 3 (NumPy shapes), and an uninitialised array in earlier versions.
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from crepe_dist.files import open_regular

MAGIC = 0x112
V1, V2, V3 = 0xF993FAC8, 0xF993FAC9, 0xF993FACA
DENSE = 0
CPU = 1  # device type
BFLOAT16 = 12
# From mshadow/base.h, which also names larger integer types that MXNet 1.9.1 neither writes nor reads.
TYPES: dict[int, np.dtype[Any]] = {
    0: np.dtype("<f4"), 1: np.dtype("<f8"), 2: np.dtype("<f2"), 3: np.dtype("u1"), 4: np.dtype("<i4"),
    5: np.dtype("i1"), 6: np.dtype("<i8"), 7: np.dtype("?"), BFLOAT16: np.dtype("<u2"),
}  # fmt: skip
MAX_FILE = 1 << 32  # bytes, ten times the paper's large network in float32
MAX_ARRAYS = 10_000
MAX_DIMENSIONS = 8
MAX_NAME = 1 << 10  # bytes


class Entry(NamedTuple):
    """Location of an array in the file.

    Attributes:
        shape: dimensions.
        kind: dtype of the values; uint16 for bfloat16.
        bfloat16: True for values in bfloat16.
        start: offset of the first value, in bytes.
    """

    shape: tuple[int, ...]
    kind: np.dtype[Any]
    bfloat16: bool
    start: int


def read(path: Path) -> dict[str, np.ndarray] | list[np.ndarray]:
    """Read the arrays of a file: by name, or as a list if it has no names. bfloat16 becomes float32.

    All sizes are checked against the file's size before memory is allocated.

    Raises:
        OSError: The file cannot be read.
        ValueError: The file is not a complete parameter file of dense arrays.
    """
    with open_regular(path) as stream:
        entries, names = _Reader(stream).contents()
        arrays = [_values(stream, entry) for entry in entries]
    return dict(zip(names, arrays)) if names else arrays


def write(path: Path, arrays: Mapping[str, np.ndarray[Any, Any]]) -> None:
    """Write arrays by name, with the same bytes as ``mx.nd.save``.

    Args:
        arrays: arrays with a dtype of ``TYPES`` other than bfloat16, and at least one dimension.
    """
    flags = {kind: flag for flag, kind in TYPES.items() if flag != BFLOAT16}
    with path.open("wb") as stream:
        stream.write(struct.pack("<QQQ", MAGIC, 0, len(arrays)))
        for array in arrays.values():
            values = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
            stream.write(struct.pack("<Iii", V2, DENSE, values.ndim))
            stream.write(struct.pack(f"<{values.ndim}q", *values.shape))
            stream.write(struct.pack("<iii", CPU, 0, flags[values.dtype]))
            stream.write(values.data)
        stream.write(struct.pack("<Q", len(arrays)))
        for name in map(str.encode, arrays):
            stream.write(struct.pack("<Q", len(name)) + name)


def _values(stream: BinaryIO, entry: Entry) -> np.ndarray:
    array = np.empty(entry.shape, dtype=entry.kind)
    stream.seek(entry.start)
    # An empty buffer cannot be cast; reshape gives a scalar a dimension to cast.
    if array.size and stream.readinto(array.reshape(-1).view(np.uint8).data) != array.nbytes:  # type: ignore[attr-defined]
        raise ValueError("it was truncated while it was read")
    if entry.kind == np.bool_ and array.view(np.uint8).max(initial=0) > 1:
        raise ValueError("it holds booleans that are neither 0 nor 1")
    if not entry.bfloat16:
        return array
    return (array.astype(np.uint32) << np.uint32(16)).view(np.float32).reshape(entry.shape)


class _Reader:
    """Parser of a file's structure, which skips the values."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._size = os.fstat(stream.fileno()).st_size
        self._position = 0
        if self._size > MAX_FILE:
            raise ValueError(f"it has {self._size:,} bytes; the limit is {MAX_FILE:,}")

    def contents(self) -> tuple[list[Entry], list[str]]:
        """Return the locations and the names of the arrays."""
        if self._size < 8 or self._numbers("Q")[0] != MAGIC:
            raise ValueError("it does not start with the magic number of such files")
        _, count = self._numbers("QQ")
        if count > MAX_ARRAYS:
            raise ValueError(f"it claims to hold {count:,} arrays; the limit is {MAX_ARRAYS:,}")
        entries = [self._entry(number) for number in range(count)]
        (named,) = self._numbers("Q")
        if named not in (0, count):
            raise ValueError(f"it has {count:,} arrays and {named:,} names")
        names = [self._name(number) for number in range(named)]
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise ValueError(f"two arrays are named {twice!r}")
        if self._position != self._size:
            raise ValueError(f"{self._size - self._position:,} extra bytes follow its end")
        return entries, names

    def _entry(self, number: int) -> Entry:
        (magic,) = self._numbers("I")
        if magic in (V2, V3):
            (storage,) = self._numbers("i")
            if storage != DENSE:
                raise ValueError(f"array {number} is sparse, or its storage type is unknown ({storage})")
        if magic in (V1, V2, V3):
            (dimensions,) = self._numbers("i")
            letter = "q"
        else:
            dimensions, letter = magic, "I"
        if not 0 <= dimensions <= MAX_DIMENSIONS:
            raise ValueError(f"array {number} has {dimensions} dimensions; the limit is {MAX_DIMENSIONS}")
        if dimensions == 0 and magic != V3:
            raise ValueError(f"array {number} was never initialised")
        shape = self._numbers(letter * dimensions)
        # One dimension may be 0, so check the product of the others too.
        if not all(0 <= length < 1 << 63 for length in shape) or math.prod(filter(None, shape)) >= 1 << 60:
            raise ValueError(f"array {number} has the shape {list(shape)}")
        _, _, flag = self._numbers("iii")
        if flag not in TYPES:
            raise ValueError(f"array {number} has an unknown dtype ({flag})")
        start = self._position
        self._skip(math.prod(shape) * TYPES[flag].itemsize, f"array {number} of shape {list(shape)}")
        return Entry(shape, TYPES[flag], flag == BFLOAT16, start)

    def _name(self, number: int) -> str:
        (length,) = self._numbers("Q")
        if length > MAX_NAME:
            raise ValueError(f"the name of array {number} has {length:,} bytes; the limit is {MAX_NAME:,}")
        try:
            return self._take(length).decode("utf-8")
        except UnicodeDecodeError:
            raise ValueError(f"the name of array {number} is not UTF-8") from None

    def _numbers(self, letters: str) -> tuple[int, ...]:
        form = f"<{letters}"
        return struct.unpack(form, self._take(struct.calcsize(form)))

    def _take(self, length: int) -> bytes:
        data = self._stream.read(min(length, self._size - self._position))
        if len(data) < length:
            raise ValueError("it ends in the middle")
        self._position += length
        return data

    def _skip(self, length: int, what: str) -> None:
        if length > self._size - self._position:
            raise ValueError(f"it ends before the end of {what}")
        self._position += length
        self._stream.seek(self._position)
