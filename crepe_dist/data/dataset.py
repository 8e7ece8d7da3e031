"""The data set folder: arrays to be memory-mapped and ``dataset.json``, the manifest that describes them.

``<part>.codes.npy``   uint8 [rows, feature_len]
``<part>.labels.npy``  int32 [rows]
``<part>.texts.bin``, ``<part>.offsets.npy`` int64 [rows + 1]   UTF-8 texts of the parts that are not trained on
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from crepe_dist.data.alphabet import Codes, Encoding
from crepe_dist.errors import UserError
from crepe_dist.files import sha256

FORMAT = 1
MANIFEST = "dataset.json"
PARTS = ("train", "validation", "test")
# A .npy header of fixed length (numpy.lib.format, version 1.0), so that it can be written after the rows are counted.
HEADER_LENGTH = 128


@dataclass(frozen=True)
class Part:
    """Rows of one part, mapped from disk.

    Attributes:
        codes: uint8 [rows, feature_len].
        labels: int32 [rows].
    """

    folder: Path
    name: str
    codes: Codes
    labels: npt.NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.labels)

    def text(self, row: int) -> str | None:
        """The original text of a row, if this part keeps texts."""
        path = self.folder / f"{self.name}.texts.bin"
        if not path.is_file():
            return None
        start, end = np.load(self.folder / f"{self.name}.offsets.npy", mmap_mode="r")[row : row + 2].tolist()
        with path.open("rb") as stream:
            stream.seek(start)
            return stream.read(end - start).decode("utf-8")


@dataclass(frozen=True)
class Dataset:
    """An opened data set folder."""

    folder: Path
    manifest: dict[str, Any]
    encoding: Encoding
    parts: dict[str, Part]

    @property
    def name(self) -> str:
        return str(self.manifest["name"])

    @property
    def classes(self) -> list[str]:
        return list(self.manifest["classes"])

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the manifest, which holds the checksums of the arrays: equal for equal data."""
        return hashlib.sha256(json.dumps(self.manifest, sort_keys=True).encode()).hexdigest()


def open_dataset(folder: Path | str) -> Dataset:
    """Opens a folder made by ``prepare``; sizes, shapes and types are checked against the manifest.

    Raises:
        UserError: not such a folder, another format version, or files that do not fit the manifest.
    """
    folder = Path(folder)
    prepare_again = f"prepare it again: python -m crepe_dist.prepare SOURCE --out {folder}"
    path = folder / MANIFEST
    if not path.is_file():
        raise UserError(
            f"{folder} is not a prepared data set",
            f"there is no {MANIFEST} in it" if folder.is_dir() else "there is no such folder",
            f"prepare one: python -m crepe_dist.prepare SOURCE --out {folder}",
        )
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        version = manifest["format"]
        if version != FORMAT:
            raise UserError(f"{path} has format {version}; this version reads format {FORMAT}", remedy=prepare_again)
        encoding = Encoding.from_dict(manifest["encoding"])
        classes = manifest["classes"]
        parts = {name: _open_part(folder, name, about, encoding) for name, about in manifest["parts"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} cannot be read", f"{type(error).__name__}: {error}", prepare_again) from error
    if len(classes) < 2 or "train" not in parts or len(parts["train"]) == 0:
        raise UserError(f"{folder} holds nothing to train on", "two classes and one training row are the least")
    return Dataset(folder, manifest, encoding, parts)


def _open_part(folder: Path, name: str, about: dict[str, Any], encoding: Encoding) -> Part:
    if name not in PARTS:
        raise ValueError(f"unknown part {name!r}")
    for file, expected in about["files"].items():
        path = folder / file
        if Path(file).name != file:
            raise ValueError(f"{file!r} leads out of the folder")
        size = path.stat().st_size if path.is_file() else None
        if size != expected["bytes"]:
            raise ValueError(f"{file} has {size} bytes, the manifest says {expected['bytes']}")
    codes = np.load(folder / f"{name}.codes.npy", mmap_mode="r", allow_pickle=False)
    labels = np.load(folder / f"{name}.labels.npy", mmap_mode="r", allow_pickle=False)
    rows = about["rows"]
    if codes.shape != (rows, encoding.feature_len) or codes.dtype != np.uint8:
        raise ValueError(f"{name}.codes.npy is {codes.dtype} {list(codes.shape)}")
    if labels.shape != (rows,) or labels.dtype != np.int32:
        raise ValueError(f"{name}.labels.npy is {labels.dtype} {list(labels.shape)}")
    return Part(folder, name, codes, labels)


def verify(dataset: Dataset) -> None:
    """Reads every file and compares its SHA-256 with the manifest.

    Raises:
        UserError: naming the first file that differs.
    """
    for about in dataset.manifest["parts"].values():
        for file, expected in about["files"].items():
            if sha256(dataset.folder / file) != expected["sha256"]:
                raise UserError(
                    f"{dataset.folder / file} was altered since it was prepared",
                    "its SHA-256 is not the one in the manifest",
                    "prepare the data again",
                )


class PartWriter:
    """Appends rows to the files of one part; ``close`` completes them."""

    def __init__(self, folder: Path, name: str, feature_len: int, *, keep_texts: bool) -> None:
        self.rows = 0
        self._folder = folder
        self._name = name
        self._feature_len = feature_len
        self._codes = (folder / f"{name}.codes.npy").open("wb")
        self._codes.write(b"\0" * HEADER_LENGTH)
        self._labels: list[npt.NDArray[np.int32]] = []
        self._texts = (folder / f"{name}.texts.bin").open("wb") if keep_texts else None
        self._ends: list[int] = [0]

    def append(self, codes: Codes, labels: npt.NDArray[np.int32], texts: list[bytes] | None = None) -> None:
        """Args: uint8 [n, feature_len], int32 [n], n texts in UTF-8 if the part keeps them."""
        self._codes.write(np.ascontiguousarray(codes).data)
        self._labels.append(np.asarray(labels, dtype=np.int32))
        self.rows += len(labels)
        if self._texts is not None and texts is not None:
            for text in texts:
                self._texts.write(text)
                self._ends.append(self._ends[-1] + len(text))

    def close(self) -> dict[str, Any]:
        """Completes the files and returns the part's entry in the manifest."""
        self._codes.seek(0)
        self._codes.write(_header((self.rows, self._feature_len)))
        self._codes.close()
        labels = np.concatenate(self._labels) if self._labels else np.zeros(0, dtype=np.int32)
        np.save(self._folder / f"{self._name}.labels.npy", labels)
        files = [f"{self._name}.codes.npy", f"{self._name}.labels.npy"]
        if self._texts is not None:
            self._texts.close()
            np.save(self._folder / f"{self._name}.offsets.npy", np.array(self._ends, dtype=np.int64))
            files += [f"{self._name}.texts.bin", f"{self._name}.offsets.npy"]
        paths = {file: self._folder / file for file in files}
        return {
            "rows": self.rows,
            "files": {file: {"bytes": path.stat().st_size, "sha256": sha256(path)} for file, path in paths.items()},
        }


def _header(shape: tuple[int, int]) -> bytes:
    text = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}"
    body = text.encode("latin-1").ljust(HEADER_LENGTH - 11) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(body).to_bytes(2, "little") + body
