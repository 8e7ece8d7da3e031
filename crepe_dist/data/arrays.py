"""Files of a data set folder: arrays, byte strings of the rows, and the source of each row.

Arrays are memory-mapped ``.npy`` files. Their header is compared with the expected header byte by byte. NumPy's own
reader passes the header to Python's parser, and a malicious header can make the parser run out of memory.

The byte strings of a shard, such as the texts of its rows, are stored in two files. One file contains all strings, and
the other contains the offset of each string. The writers return the manifest entries of the files that they wrote.
"""

import hashlib
import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from crepe_dist.files.atomic_write import fsync, name_path_in_errors
from crepe_dist.files.safe_read import open_regular

# Kinds of byte strings that a row may have: its original text, and its value in the id column.
TEXTS, IDS = "texts", "ids"
_OFFSETS = {TEXTS: "offsets", IDS: "id_offsets"}
HEADER = 128  # Size of the header of a .npy file, in bytes.
# The array of origins has three columns: index of the source file, line, hash of the text. HASH is the index of the
# last column.
ORIGIN_COLUMNS, HASH = 3, 2
Arrays = dict[str, npt.NDArray[Any]]  # Arrays by name.
Files = dict[str, dict[str, Any]]  # Manifest entries by file name: size in bytes and SHA-256.


def npy_header(dtype: np.dtype[Any], shape: tuple[int, ...]) -> bytes:
    """Return the header of a ``.npy`` file whose values follow in C order.

    The header equals NumPy's header byte by byte.
    """
    fields = {"descr": dtype.str, "fortran_order": False, "shape": tuple(map(int, shape))}
    text = "{" + "".join(f"{name!r}: {value!r}, " for name, value in fields.items()) + "}"
    start = b"\x93NUMPY\x01\x00" + (HEADER - 10).to_bytes(2, "little")
    return start + text.encode().ljust(HEADER - len(start) - 1) + b"\n"


def map_array(path: Path, kind: npt.DTypeLike, shape: tuple[int, ...]) -> Any:
    """Memory-map the array of a file, read-only.

    Raises:
        OSError: The file cannot be read, or is a symbolic link.
        ValueError: The file does not contain an array of this dtype and shape in the format that ``prepare`` writes.
    """
    dtype = np.dtype(kind)
    with open_regular(path, follow=False) as stream:
        size = HEADER + math.prod(shape) * dtype.itemsize
        if stream.read(HEADER) != npy_header(dtype, shape) or os.fstat(stream.fileno()).st_size != size:
            raise ValueError(f"{path.name} is not the array {dtype.str} {list(shape)} that prepare has written")
        return np.memmap(stream, dtype=dtype, mode="r", offset=HEADER, shape=shape)


def string_files(split: str, kind: str, shard: int) -> tuple[str, str]:
    """Return the names of two files: a shard's strings, and their offsets (int64, [rows + 1])."""
    return f"{split}.{kind}-{shard:05d}.bin", f"{split}.{_OFFSETS[kind]}-{shard:05d}.npy"


def check_strings(folder: Path, split: str, kind: str, shard: int, rows: int) -> None:
    """Raise ``ValueError`` if the offsets of a shard do not match its strings."""
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
    """Location of a document in its source file. The hash of the text shows whether the source file has changed.

    Attributes:
        file: Name of the source file, as in the manifest.
        line: First line of the row, counted from 1. In sources without lines, such as folders of files, it is the
            number of the document.
        id: Value of the id column, or the file name in a folder of files. Empty if the source has no ids.
        hash: Hash of the text in hexadecimal, from ``format_hash``.
    """

    file: str
    line: int
    id: str
    hash: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}" + (f" ({self.id})" if self.id else "")

    def cells(self) -> dict[str, Any]:
        """Return the values of the columns that identify the row in CSV output."""
        return {"file": self.file, "line": self.line, "id": self.id}


def origins_file(split: str) -> str:
    """Return the file name of a split's origins.

    The file holds an array, uint64 [rows, 3]: index of the source in the manifest, line, and hash of the text.
    """
    return f"{split}.origins.npy"


def groups_file(split: str) -> str:
    """Return the file name of a split's groups. The file holds an array, int32 [rows]."""
    return f"{split}.groups.npy"


def hash_texts(texts: Iterable[bytes]) -> npt.NDArray[np.uint64]:
    """Return the BLAKE2b hashes of texts in UTF-8, uint64 [n]."""
    return np.frombuffer(b"".join(hashlib.blake2b(text, digest_size=8).digest() for text in texts), dtype="<u8")


def format_hash(value: int) -> str:
    """Format a hash for a CSV file. The leading letter prevents spreadsheets from reading the hash as a number."""
    return f"x{value:016x}"


class ShardWriter:
    """Sequential writer of one shard of a split.

    Args:
        rows: Number of rows of the shard.
        feature_len: Number of character ids per row.
        kinds: Kinds of byte strings to write: ``TEXTS``, ``IDS``.
    """

    def __init__(self, folder: Path, split: str, shard: int, rows: int, feature_len: int, kinds: Sequence[str]) -> None:
        self._folder = folder
        self._char_ids = _HashedFile(folder / f"{split}.codes-{shard:05d}.npy")
        self._char_ids.write(npy_header(np.dtype(np.uint8), (rows, feature_len)))
        # For each kind: the file of the strings, the name of the offsets file, and a 0 followed by the string lengths.
        self._strings: dict[str, tuple[_HashedFile, str, list[int]]] = {}
        for kind in kinds:
            strings, offsets = string_files(split, kind, shard)
            self._strings[kind] = _HashedFile(folder / strings), offsets, [0]

    def append(self, char_ids: npt.NDArray[np.uint8], **strings: list[bytes]) -> None:
        """Write rows.

        Args:
            char_ids: Encoded documents, uint8 [n, feature_len].
            strings: For each kind, a list of n byte strings. Kinds that this writer does not write are ignored.
        """
        self._char_ids.write(np.ascontiguousarray(char_ids).data)
        for kind, (file, _, lengths) in self._strings.items():
            file.write(b"".join(strings[kind]))
            lengths.extend(map(len, strings[kind]))

    def close(self) -> Files:
        """Flush the files to disk and return their manifest entries."""
        files = self._char_ids.close()
        for file, offsets, lengths in self._strings.values():
            files |= file.close() | write_array(self._folder, offsets, np.cumsum(lengths))
        return files


class _HashedFile:
    """Writer of a file that also computes the SHA-256 of the file."""

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
        fsync(self._path)
        return {self._path.name: {"bytes": self._path.stat().st_size, "sha256": self._digest.hexdigest()}}


def write_array(folder: Path, name: str, array: Any) -> Files:
    """Write an array to a ``.npy`` file and return the file's manifest entry."""
    return write_in_chunks(folder, name, array.dtype, array.shape, [array])


def write_in_chunks(
    folder: Path, name: str, kind: npt.DTypeLike, shape: tuple[int, ...], pieces: Iterable[npt.NDArray[Any]]
) -> Files:
    """Write an array, given as chunks of its rows, to a ``.npy`` file, and return the file's manifest entry."""
    with name_path_in_errors(folder / name):
        file = _HashedFile(folder / name)
        file.write(npy_header(np.dtype(kind), shape))
        for piece in pieces:
            file.write(np.ascontiguousarray(piece).data)
        return file.close()
