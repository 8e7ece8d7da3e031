"""Writers of the files of a data set folder, which return their entries in the manifest."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from crepe_dist.data.alphabet import Codes
from crepe_dist.data.arrays import IDS, TEXTS, string_files
from crepe_dist.data.dataset import KEEP_TEXTS, SHARD_BYTES, Documents
from crepe_dist.data.origins import file_of
from crepe_dist.files import sync, writing

CHUNK = 4096  # documents that are copied together
Files = dict[str, dict[str, Any]]  # size and checksum by name, for the manifest


class ShardWriter:
    """Sequential writer of one shard of a split, with the ``kinds`` of byte strings to write: ``TEXTS``, ``IDS``."""

    def __init__(self, folder: Path, split: str, shard: int, rows: int, feature_len: int, kinds: Sequence[str]) -> None:
        self._codes = _HashedFile(folder / f"{split}.codes-{shard:05d}.npy")
        self._codes.write_header(np.uint8, (rows, feature_len))
        self._strings = {kind: _StringsWriter(folder, split, kind, shard) for kind in kinds}

    def append(self, codes: Codes, **strings: list[bytes]) -> None:
        """Write rows: uint8 [n, feature_len], and n byte strings of each kind, those not ``kinds`` being ignored."""
        self._codes.write(np.ascontiguousarray(codes).data)
        for kind, writer in self._strings.items():
            writer.append(strings[kind])

    def close(self) -> Files:
        """Flush the files to disk and return their manifest entries."""
        files = self._codes.close()
        for writer in self._strings.values():
            files |= writer.close()
        return files


def write_documents(folder: Path, name: str, documents: Documents, rows: npt.NDArray[np.int64]) -> dict[str, Any]:
    """Copy documents, without their labels, to the part ``name`` of a data set folder.

    Args:
        rows: the documents, int64 [n].

    Returns:
        Entry of the part in the manifest.
    """
    length = documents.shards[0].shape[1]
    size = max(1, SHARD_BYTES // length)
    shards = [rows[start : start + size] for start in range(0, len(rows), size)]
    files = write_array(folder, file_of(name), documents.origins[rows])
    for number, of_shard in enumerate(shards):
        kinds = [TEXTS] * (name in KEEP_TEXTS) + [IDS] * documents.has_ids
        writer = ShardWriter(folder, name, number, len(of_shard), length, kinds)
        for start in range(0, len(of_shard), CHUNK):
            chunk = of_shard[start : start + CHUNK]
            texts, ids = ([(of(row) or "").encode() for row in chunk.tolist()] for of in (documents.text, documents.id))
            writer.append(documents.codes(chunk), texts=texts, ids=ids)
        files |= writer.close()
    return {"rows": len(rows), "shards": list(map(len, shards)), "files": files}


class _StringsWriter:
    """Sequential writer of the strings of a shard."""

    def __init__(self, folder: Path, part: str, kind: str, shard: int) -> None:
        strings, self._offsets = string_files(part, kind, shard)
        self._folder = folder
        self._strings = _HashedFile(folder / strings)
        self._lengths: list[int] = [0]

    def append(self, strings: list[bytes]) -> None:
        """Write the strings of the next rows."""
        self._strings.write(b"".join(strings))
        self._lengths += map(len, strings)

    def close(self) -> Files:
        """Flush the files to disk and return their manifest entries."""
        return self._strings.close() | write_array(self._folder, self._offsets, np.cumsum(self._lengths))


class _HashedFile:
    """File that is hashed while it is written."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stream = path.open("wb")
        self._digest = hashlib.sha256()

    def write_header(self, kind: npt.DTypeLike, shape: tuple[int, ...]) -> None:
        """Write the header of an array in a .npy file; the values follow it in C order."""
        about = {"descr": np.dtype(kind).str, "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(self, about)  # type: ignore[no-untyped-call]

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
    return write_pieces(folder, name, array.dtype, array.shape, [array])


def write_pieces(
    folder: Path, name: str, kind: npt.DTypeLike, shape: tuple[int, ...], pieces: Iterable[npt.NDArray[Any]]
) -> Files:
    """Write an array to disk in pieces of its rows, and return its manifest entry."""
    with writing(folder / name):
        file = _HashedFile(folder / name)
        file.write_header(kind, shape)
        for piece in pieces:
            file.write(np.ascontiguousarray(piece).data)
        return file.close()
