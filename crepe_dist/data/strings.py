"""Byte strings of the rows of a shard, such as their texts: a file of all of them, and one of where each starts."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from crepe_dist.data.array_file import map_array
from crepe_dist.files import identity, open_regular, sync, writing

Files = dict[str, dict[str, Any]]  # size and checksum by name, for the manifest
TEXTS, IDS = "texts", "ids"
_OFFSETS = {TEXTS: "offsets", IDS: "id_offsets"}


def names(part: str, kind: str, shard: int) -> tuple[str, str]:
    """Return the names of the file of the strings, and of that of their offsets, int64 [rows + 1]."""
    return f"{part}.{kind}-{shard:05d}.bin", f"{part}.{_OFFSETS[kind]}-{shard:05d}.npy"


def check(folder: Path, part: str, kind: str, shard: int, rows: int) -> None:
    """Raise ``ValueError`` if the offsets do not match the strings."""
    strings, offsets = names(part, kind, shard)
    found = map_array(folder / offsets, np.int64, (rows + 1,))
    if found[0] != 0 or found[-1] != (folder / strings).stat().st_size or (found[1:] < found[:-1]).any():
        raise ValueError(f"{offsets} does not match the {kind}")


def read(folder: Path, part: str, kind: str, shard: int, rows: int, row: int) -> str:
    """Read the string of one row of a shard."""
    strings, offsets = names(part, kind, shard)
    start, end = map_array(folder / offsets, np.int64, (rows + 1,))[row : row + 2].tolist()
    with open_regular(folder / strings, follow=False) as stream:
        stream.seek(start)
        return stream.read(end - start).decode("utf-8", "replace")


class StringsWriter:
    """Sequential writer of the strings of a shard."""

    def __init__(self, folder: Path, part: str, kind: str, shard: int) -> None:
        strings, self._offsets = names(part, kind, shard)
        self._folder = folder
        self._strings = HashedFile(folder / strings)
        self._lengths: list[int] = [0]

    def append(self, strings: list[bytes]) -> None:
        """Write the strings of the next rows."""
        self._strings.write(b"".join(strings))
        self._lengths += map(len, strings)

    def close(self) -> Files:
        """Flush the files to disk and return their manifest entries."""
        return self._strings.close() | write_array(self._folder, self._offsets, np.cumsum(self._lengths))


class HashedFile:
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
    """Write a small array to disk and return its manifest entry."""
    with writing(folder / name):
        np.save(folder / name, array)
        sync(folder / name)
    return {name: identity(folder / name)}
