"""Composition of a document's text: columns joined in order, and HTML tags removed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from crepe_dist.data.markup import without_tags

SEPARATOR = " | "


def join(columns: Sequence[str]) -> str:
    """Join the text columns of a row as ``title | text``, as the notebook does, except for blank ones."""
    return columns[0] if len(columns) == 1 else SEPARATOR.join(column for column in columns if column.strip())


@dataclass(frozen=True)
class Composition:
    """Composition of the texts of a data set, and of all texts that its models read.

    Args:
        columns: names of the columns that are joined, in order; empty if the rows had no named columns.
        strip_html: remove HTML tags and resolve character references such as ``&amp;``.
    """

    columns: tuple[str, ...] = ()
    strip_html: bool = False

    def text(self, text: str) -> str:
        """Return a joined text as the network reads it."""
        return without_tags(text) if self.strip_html else text

    def to_dict(self) -> dict[str, Any]:
        """Return the composition as JSON-like data."""
        return asdict(self)

    @classmethod
    def from_dict(cls, saved: dict[str, Any]) -> Composition:
        """Restore a composition from ``to_dict``'s result.

        Raises:
            KeyError: A field is missing.
            TypeError: ``saved`` is not a dictionary.
            ValueError: A field has the wrong type.
        """
        columns, strip_html = saved["columns"], saved["strip_html"]
        if not isinstance(columns, (list, tuple)) or not all(isinstance(name, str) for name in columns):
            raise ValueError("the columns of the text are not a list of names")
        if type(strip_html) is not bool:
            raise ValueError("strip_html is neither true nor false")
        return cls(tuple(columns), strip_html)
