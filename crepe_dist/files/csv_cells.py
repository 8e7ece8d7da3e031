"""TODO docstring."""

from __future__ import annotations

import csv
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from crepe_dist.files.atomic_write import atomic_text

# Signs in full width count as the usual ones in East Asian versions. Blanks before them do not always help.
_FORMULA = re.compile(r"'*(?:[\t\r]|\s*[=+\-@\uff1d\uff0b\uff0d\uff20]\s*\S)")
_NUMBER = re.compile(r"\s*[+-]?[\d.,\s]*\d(?:[eE][+-]?\d+)?\s*%?\s*", re.ASCII)
GUARDED = "apostrophe before formulas"  # name of an empty column, which a table keeps when a spreadsheet saves it
ANSWERED = ("predicted_class", "predicted_probability", "characters_cut", "problem")  # columns of ``predict``


def write_csv(
    path: Path, rows: Iterable[Mapping[str, Any]], columns: Sequence[str] = (), *, follow: bool = False
) -> None:
    """Write a CSV file, as ``atomic_text`` does; all rows have the columns of the first. See ``cell``.

    Args:
        columns: columns of a file without rows.
    """
    rows = iter(rows)
    first = next(rows, None)
    with atomic_text(path, errors="replace", follow=follow) as stream:
        writer = csv.writer(stream, lineterminator="\r\n")
        writer.writerow(map(cell, columns if first is None else first))
        for row in rows if first is None else chain([first], rows):
            writer.writerow(map(cell, row.values()))


def cell(value: Any) -> Any:
    """Return a value as the cell of a CSV file: a text with an apostrophe first if a spreadsheet would compute it.

    A formula can start programs and send other cells to a server, and texts and class names may come from anybody
    (OWASP, "CSV Injection").
    """
    return f"'{value}" if isinstance(value, str) and _is_formula(value) else value


def cells(values: Iterable[Any]) -> list[Any]:
    """Return the ``cell`` of each value."""
    # Most begin with a letter or digit, as no formula does.
    return [value if type(value) is not str or value[:1].isalnum() else cell(value) for value in values]


def unescape_cell(text: str) -> str:
    """Return the value of a cell that ``cell`` made."""
    return text[1:] if text.startswith("'") and _is_formula(text[1:]) else text


def has_guards(columns: Collection[str]) -> bool:
    """Tell by the names of a table's columns whether ``cell`` made it: texts to label, or answers."""
    return GUARDED in columns or all(name in columns for name in ANSWERED)


def _is_formula(text: str) -> bool:
    if text[:1].isalnum():
        return False
    return _FORMULA.match(text) is not None and _NUMBER.fullmatch(text) is None
