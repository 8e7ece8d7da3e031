"""The spool: rows on disk between reading and selection, one fixed-size record each, and files of their texts.

Rows are identified by file and line, so that the later selection does not depend on the number of reading processes.
"""

from __future__ import annotations

import json
import mmap
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from crepe_dist.files.safe_read import open_regular
from crepe_dist.preparing.sources import Source

ROWS = "rows.bin"
INVALID_ROWS = "bad.jsonl"
Rows = npt.NDArray[Any]  # dtype ROW
ROW = np.dtype(
    [
        ("file", "<u4"),  # index of the source
        ("line", "<i8"),
        ("label", "<i4"),  # index in the labels that were read
        ("characters", "<u4"),
        ("texts", "<u2"),  # index of the file of texts
        ("offset", "<i8"),  # position of the text in it, in bytes
        ("bytes", "<u4"),
        ("id", "<u2"),  # bytes of the row's id, which follows the text
        ("exact", "<u8"),  # hash of the text
        ("near", "<u8"),  # hash of its letters and digits in lower case
        ("exact_alone", "<u8"),  # the same hashes of the text alone, if there are columns beside it
        ("near_alone", "<u8"),
        ("weight", "<f4"),
    ]
)
MAX_WEIGHT = 1e9


class SpooledTexts:
    """Reader of the texts of rows, memory-mapped from the files of a spool."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._files = [_map_bytes(path) for path in paths]

    def get(self, rows: Rows) -> list[bytes]:
        """Return the UTF-8 texts of rows."""
        return self._strings(rows, rows["offset"], rows["bytes"])

    def ids(self, rows: Rows) -> list[bytes]:
        """Return the ids of rows, in UTF-8; empty for rows without one."""
        return self._strings(rows, rows["offset"] + rows["bytes"], rows["id"])

    def _strings(self, rows: Rows, starts: Any, lengths: Any) -> list[bytes]:
        places = zip(rows["texts"].tolist(), starts.tolist(), lengths.tolist())
        return [self._files[file][start : start + length] for file, start, length in places]


def _map_bytes(path: Path) -> Any:
    with open_regular(path, follow=False) as stream:
        return mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) if path.stat().st_size else b""


def map_rows(path: Path) -> Rows:
    """Memory-map a file of row records."""
    if path.stat().st_size == 0:
        return np.zeros(0, dtype=ROW)
    with open_regular(path, follow=False) as stream:
        return np.memmap(stream, dtype=ROW, mode="r")


@dataclass(frozen=True)
class RowSubset:
    """Some rows of a spool. A worker gets their indices, and maps the files itself.

    Attributes:
        file: file of the records.
        text_files: files of the texts.
        chosen: indices of the rows, int64 [n].
    """

    file: Path
    text_files: tuple[Path, ...]
    chosen: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitem__(self, part: slice) -> RowSubset:
        return RowSubset(self.file, self.text_files, self.chosen[part])

    def records(self) -> Rows:
        """Read the records of these rows."""
        return np.asarray(map_rows(self.file)[self.chosen])

    def column(self, name: str) -> npt.NDArray[Any]:
        """Read a field of these records alone, since there may be many millions."""
        return np.asarray(map_rows(self.file)[name][self.chosen])

    def texts(self) -> SpooledTexts:
        """Map the texts of the spool."""
        return SpooledTexts(self.text_files)


@dataclass
class SpooledRows:
    """Everything that was read, in a spool folder.

    Attributes:
        sources: the sources in the order of their indices.
        labels: label names that the rows' labels index, in the order of appearance.
        good: usable rows of each label.
        bad: number of unusable rows.
        files: format, row counts and checksum of each source, by index.
        texts: files of texts.
        corrected: what corrections did, see ``corrections.correct``; ``None`` if there were none.
        noticed: number of usable rows that look wrong, by ``reading.NOTICED``.
        renamed: old and new names of classes, and the number of rows that had the old one.
    """

    folder: Path
    sources: Sequence[Source]
    labels: list[str] = field(default_factory=list)
    valid: Counter[str] = field(default_factory=Counter)
    invalid: int = 0
    files: dict[int, dict[str, Any]] = field(default_factory=dict)
    texts: list[Path] = field(default_factory=list)
    corrections: dict[str, Any] | None = None
    defects: Counter[str] = field(default_factory=Counter)
    renamed: list[dict[str, Any]] = field(default_factory=list)

    @cached_property
    def rows(self) -> Rows:
        """Records in the order of (file, line)."""
        return map_rows(self.folder / ROWS)

    @property
    def num_read(self) -> int:
        """Number of rows that were read."""
        return sum(self.valid.values()) + self.invalid

    def iter_invalid_rows(self) -> Iterator[dict[str, Any]]:
        """Yield the records of unusable rows, in the order of (file, line)."""
        with (self.folder / INVALID_ROWS).open(encoding="utf-8") as lines:
            yield from map(json.loads, lines)

    def subset(self, chosen: npt.NDArray[np.int64]) -> RowSubset:
        """Choose rows by their indices, int64 [n]."""
        return RowSubset(self.folder / ROWS, tuple(self.texts), chosen)


def append_texts(folder: Path, texts: Sequence[bytes]) -> tuple[Path, int]:
    """Append texts to this process's file; return its path, and the offset of the first text in bytes."""
    path = folder / f"texts-{os.getpid()}.bin"
    with path.open("ab") as stream:
        start = stream.tell()
        stream.write(b"".join(texts))
    return path, start
