"""Preprocessing of the text of a row: join the text columns, and remove HTML tags."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from crepe_dist.data.markup import without_tags

SEPARATOR = " | "  # Separator between the joined text columns of a row.
EMPTY = "empty text"  # Reason why a row without text cannot be classified.


def join_columns(columns: Sequence[str]) -> str:
    """Join the text columns of a row as ``title | text``, like the original Gluon notebook. Omit blank columns."""
    return columns[0] if len(columns) == 1 else SEPARATOR.join(column for column in columns if column.strip())


def parse_number(value: str) -> float | None:
    """Parse ``value`` as a finite number in Python's syntax. Return ``None`` if it is not one."""
    try:
        number = float(value)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


@dataclass(frozen=True)
class TextPreprocessor:
    """Preprocessor of the texts of a data set, and of all texts that its models read.

    Args:
        columns: Names of the text columns. The texts are joined in this order. Empty if the rows had no named columns.
        strip_html: True to remove HTML tags and resolve character references such as ``&amp;``.
    """

    columns: tuple[str, ...] = ()
    strip_html: bool = False

    def text(self, row: str) -> str:
        """Return a row as the network reads it."""
        return without_tags(row) if self.strip_html else row

    def to_dict(self) -> dict[str, Any]:
        """Return the preprocessor as JSON-like data."""
        return asdict(self)

    @classmethod
    def from_dict(cls, saved: dict[str, Any]) -> "TextPreprocessor":
        """Restore a preprocessor from the result of ``to_dict``."""
        return cls(tuple(map(str, saved["columns"])), bool(saved["strip_html"]))
