"""Origins of documents: the source, the line there, and a hash of the text, by which a changed source is noticed.

The file ``<split>.origins.npy`` has them as uint64 [rows, 3]: index of the source in the manifest, line, hash.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import numpy as np
import numpy.typing as npt

Numbers = npt.NDArray[np.uint64]
COLUMNS, HASH = 3, 2  # number of columns, and the column of hashes


def file_of(part: str) -> str:
    """Return the name of the file of a split's origins."""
    return f"{part}.origins.npy"


@dataclass(frozen=True)
class Origin:
    """Row of a source.

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


def hashes(texts: Iterable[bytes]) -> Numbers:
    """Hash texts in UTF-8, uint64 [n]."""
    return np.frombuffer(b"".join(blake2b(text, digest_size=8).digest() for text in texts), dtype="<u8")


def spelled(value: int) -> str:
    """Spell a hash for a CSV file. Spreadsheets would take some for numbers without the letter before them."""
    return f"x{value:016x}"
