"""The spool: files that hold all rows between reading and splitting.

Each row has a record of fixed size in one file. The texts and ids are in other files. A row is identified by its source
and line, so the splits do not depend on the number of processes that read.
"""

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
from crepe_dist.preparing.formats import FIELD_SEPARATOR
from crepe_dist.preparing.label_parsing import ABSENT
from crepe_dist.preparing.sources import Source

ROWS = "rows.bin"
GROUP_VALUES = "groups.bin"
INVALID_ROWS = "bad.jsonl"
# Array of records, dtype ``ROW``.
Rows = npt.NDArray[Any]
ROW = np.dtype(
    [
        ("file", "<u4"),  # Index of the source.
        ("line", "<i8"),  # Number of the row's first line, counted from 1.
        ("label", "<i4"),  # Index in ``SpooledRows.labels``.
        ("characters", "<u4"),  # Length of the text in characters.
        ("texts", "<u2"),  # Index in ``SpooledRows.texts`` of the file that holds the text.
        ("offset", "<i8"),  # Position of the text in this file, in bytes.
        ("bytes", "<u4"),  # Length of the text in bytes.
        ("id", "<u2"),  # Length of the row's id, which follows the text, in bytes.
        ("exact", "<u8"),  # Hash of the text.
        ("near", "<u8"),  # Hash of the letters and digits of the text, in lower case.
        ("weight", "<f4"),  # Weight of the row; 1 if the rows have no weights.
    ]
)
# Maximum weight of a row in a source.
MAX_WEIGHT = 1e9


class SpooledTexts:
    """Reader of texts and ids, which memory-maps the files of a spool."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._files = [_map_bytes(path) for path in paths]

    def get(self, rows: Rows) -> list[bytes]:
        """Return the texts of rows, in UTF-8."""
        return self._strings(rows, rows["offset"], rows["bytes"])

    def ids(self, rows: Rows) -> list[bytes]:
        """Return the ids of rows, in UTF-8. The id is empty if a row has none."""
        return self._strings(rows, rows["offset"] + rows["bytes"], rows["id"])

    def groups(self, rows: Rows, lengths: npt.NDArray[Any]) -> list[list[str]]:
        """Return the values of the group columns of rows.

        Args:
            lengths: Length of the values of each row; see ``group_record``.
        """
        strings = self._strings(rows, rows["offset"] + rows["bytes"] + rows["id"], lengths)
        return [string.decode("utf-8", "replace").split(FIELD_SEPARATOR) for string in strings]

    def _strings(self, rows: Rows, starts: Any, lengths: Any) -> list[bytes]:
        positions = zip(rows["texts"].tolist(), starts.tolist(), lengths.tolist())
        return [self._files[file][start : start + length] for file, start, length in positions]


def group_record(columns: int) -> np.dtype[Any]:
    """Return the dtype of a row's group values.

    Fields: the hash of the value in each column, which is 0 for a missing value; and the length in bytes of the values,
    which follow the id in the file of the texts, separated by ``FIELD_SEPARATOR``.
    """
    return np.dtype([("hashes", "<u8", (columns,)), ("bytes", "<u4")])


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
    """Subset of the rows of a spool.

    The subset holds only indices, so it is cheap to send to a worker process. The worker process maps the files itself.

    Attributes:
        file: File of the records.
        text_files: Files of the texts.
        chosen: Indices of the rows, int64 [n].
    """

    file: Path
    text_files: tuple[Path, ...]
    chosen: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitem__(self, index: slice) -> "RowSubset":
        return RowSubset(self.file, self.text_files, self.chosen[index])

    def iter_chunks(self, size: int) -> "Iterator[RowSubset]":
        """Yield these rows in chunks of ``size`` rows."""
        return (self[start : start + size] for start in range(0, len(self), size))

    def records(self) -> Rows:
        """Read the records of these rows."""
        return np.asarray(map_rows(self.file)[self.chosen])

    def column(self, name: str) -> npt.NDArray[Any]:
        """Read one field of these records. This needs less memory than all fields of many millions of records."""
        return np.asarray(map_rows(self.file)[name][self.chosen])

    def texts(self) -> list[str]:
        """Read the texts of these rows."""
        return [text.decode("utf-8") for text in SpooledTexts(self.text_files).get(self.records())]


@dataclass
class SpooledRows:
    """All rows that were read, in a spool folder.

    Attributes:
        sources: Sources in the order of their indices.
        labels: Label strings that the records index, in the order of their first rows; see ``label_parsing``.
        valid: Number of valid rows of each label.
        invalid: Number of lines in invalid rows. Each of these lines counts as a row.
        files: Format, row counts and checksum of each source, by its index.
        texts: Files of the texts.
        corrections: Outcomes of corrections, see ``corrections.apply_corrections``. ``None`` if there are none.
        defects: Number of valid rows with each defect of ``reading.DEFECTS``.
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

    @cached_property
    def rows(self) -> Rows:
        """Records, sorted by (file, line)."""
        return map_rows(self.folder / ROWS)

    def group_values(self, columns: int) -> npt.NDArray[Any]:
        """Map the group values of all rows, an array of ``group_record``."""
        path = self.folder / GROUP_VALUES
        empty = path.stat().st_size == 0
        return np.zeros(0, group_record(columns)) if empty else np.memmap(path, group_record(columns), "r")

    @property
    def lacks_label(self) -> npt.NDArray[np.bool_]:
        """Mask of the rows without a label, bool [rows]."""
        absent = self.labels.index(ABSENT) if ABSENT in self.labels else -1
        return np.asarray(self.rows["label"] == absent)

    def first_value(self, key: str) -> Any:
        """Return the first non-empty value that an entry of ``files`` has for a key, or ``None`` if there is none."""
        return next((entry[key] for entry in self.files.values() if entry[key]), None)

    def map_for_writing(self) -> Rows:
        """Map the records, so that changes are written to their file."""
        return np.memmap(self.folder / ROWS, ROW, "r+") if len(self.rows) else self.rows

    @property
    def num_read(self) -> int:
        """Number of rows that were read."""
        return sum(self.valid.values()) + self.invalid

    def iter_invalid_rows(self) -> Iterator[dict[str, Any]]:
        """Yield descriptions of the invalid rows, sorted by (file, line)."""
        with (self.folder / INVALID_ROWS).open(encoding="utf-8") as lines:
            yield from map(json.loads, lines)

    def subset(self, chosen: npt.NDArray[np.int64]) -> RowSubset:
        """Return the rows with these indices, int64 [n]."""
        return RowSubset(self.folder / ROWS, tuple(self.texts), chosen)


def append_texts(folder: Path, texts: Sequence[bytes]) -> tuple[Path, int]:
    """Append texts to the file of this process. Return its path, and the offset of the first text in bytes."""
    path = folder / f"texts-{os.getpid()}.bin"
    with path.open("ab") as stream:
        start = stream.tell()
        stream.write(b"".join(texts))
    return path, start
