"""Files of a data set folder: arrays, byte strings of the rows, and where the rows are from.

Arrays are memory-mapped. Their header is compared, because NumPy's own reader passes it to Python's parser, which a
malicious header can make run out of memory. The byte strings of a shard's rows, such as their texts, are a file of all
of them, and one of where each starts. The writers return the files' entries in the manifest.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from crepe_dist.files.atomic_write import name_path_in_errors, sync
from crepe_dist.files.safe_read import open_regular

TEXTS, IDS = "texts", "ids"
_OFFSETS = {TEXTS: "offsets", IDS: "id_offsets"}
HEADER = 128  # bytes
ORIGIN_COLUMNS, HASH = 3, 2  # columns of the origins: index of the source, line, hash of the text; that of hashes
Arrays = dict[str, npt.NDArray[Any]]  # by name
Files = dict[str, dict[str, Any]]  # size and checksum by name, for the manifest


def npy_header(dtype: np.dtype[Any], shape: tuple[int, ...]) -> bytes:
    """Return the header of an array in a .npy file, as NumPy writes it; the values follow in C order."""
    about = {"descr": dtype.str, "fortran_order": False, "shape": tuple(map(int, shape))}
    text = "{" + "".join(f"{name!r}: {value!r}, " for name, value in about.items()) + "}"
    start = b"\x93NUMPY\x01\x00" + (HEADER - 10).to_bytes(2, "little")
    return start + text.encode().ljust(HEADER - len(start) - 1) + b"\n"


def map_array(path: Path, kind: npt.DTypeLike, shape: tuple[int, ...]) -> Any:
    """Memory-map the array in a file, read-only.

    Raises:
        OSError: The file cannot be read, or is a symbolic link.
        ValueError: The file is not an array of this dtype and shape, as ``prepare`` writes it.
    """
    dtype = np.dtype(kind)
    with open_regular(path, follow=False) as stream:
        size = HEADER + math.prod(shape) * dtype.itemsize
        if stream.read(HEADER) != npy_header(dtype, shape) or os.fstat(stream.fileno()).st_size != size:
            raise ValueError(f"{path.name} is not the array {dtype.str} {list(shape)} that prepare has written")
        return np.memmap(stream, dtype=dtype, mode="r", offset=HEADER, shape=shape)


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


@dataclass(frozen=True)
class SourceRow:
    """Row of a source: where a document is from. By the hash of its text, a changed source is noticed.

    Attributes:
        line: first line of the row, from 1; its number in sources without lines, such as folders of files.
        id: value of the id column, or the name of the file in a folder of files; empty if there is none.
        hash: hash of the text, as ``spelled``.
    """

    file: str
    line: int
    id: str
    hash: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}" + (f" ({self.id})" if self.id else "")

    def cells(self) -> dict[str, Any]:
        """Return the columns that trace a row of a CSV file."""
        return {"file": self.file, "line": self.line, "id": self.id}


def origins_file(split: str) -> str:
    """Return the name of the file of the origins, uint64 [rows, 3]: index of the source in the manifest, line, hash."""
    return f"{split}.origins.npy"


def hash_texts(texts: Iterable[bytes]) -> npt.NDArray[np.uint64]:
    """Hash texts in UTF-8, uint64 [n]."""
    return np.frombuffer(b"".join(hashlib.blake2b(text, digest_size=8).digest() for text in texts), dtype="<u8")


def format_hash(value: int) -> str:
    """Spell a hash for a CSV file. Spreadsheets would take some for numbers without the letter before them."""
    return f"x{value:016x}"


class ShardWriter:
    """Sequential writer of one shard of a split, with the ``kinds`` of byte strings to write: ``TEXTS``, ``IDS``."""

    def __init__(self, folder: Path, split: str, shard: int, rows: int, feature_len: int, kinds: Sequence[str]) -> None:
        self._folder = folder
        self._codes = _HashedFile(folder / f"{split}.codes-{shard:05d}.npy")
        self._codes.write(npy_header(np.dtype(np.uint8), (rows, feature_len)))
        self._strings: dict[str, tuple[_HashedFile, str, list[int]]] = {}  # with the file of offsets, and the lengths
        for kind in kinds:
            strings, offsets = string_files(split, kind, shard)
            self._strings[kind] = _HashedFile(folder / strings), offsets, [0]

    def append(self, char_ids: npt.NDArray[np.uint8], **strings: list[bytes]) -> None:
        """Write rows: uint8 [n, feature_len], and n byte strings of each kind, those not ``kinds`` being ignored."""
        self._codes.write(np.ascontiguousarray(char_ids).data)
        for kind, (file, _, lengths) in self._strings.items():
            file.write(b"".join(strings[kind]))
            lengths.extend(map(len, strings[kind]))

    def close(self) -> Files:
        """Flush the files to disk and return their manifest entries."""
        files = self._codes.close()
        for file, offsets, lengths in self._strings.values():
            files |= file.close() | write_array(self._folder, offsets, np.cumsum(lengths))
        return files


class _HashedFile:
    """File that is hashed while it is written."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stream = path.open("wb")
        self._digest = hashlib.sha256()

    def write(self, data: Any) -> None:
        self._stream.write(data)
        self._digest.update(data)

    def close(self) -> Files:
        """Flush the file to disk and return its manifest entry."""
        self._stream.close()
        sync(self._path)
        return {self._path.name: {"bytes": self._path.stat().st_size, "sha256": self._digest.hexdigest()}}


def write_array(folder: Path, name: str, array: Any) -> Files:
    """Write an array to disk and return its manifest entry."""
    return write_in_chunks(folder, name, array.dtype, array.shape, [array])


def write_in_chunks(
    folder: Path, name: str, kind: npt.DTypeLike, shape: tuple[int, ...], pieces: Iterable[npt.NDArray[Any]]
) -> Files:
    """Write an array to disk in pieces of its rows, and return its manifest entry."""
    with name_path_in_errors(folder / name):
        file = _HashedFile(folder / name)
        file.write(npy_header(np.dtype(kind), shape))
        for piece in pieces:
            file.write(np.ascontiguousarray(piece).data)
        return file.close()
