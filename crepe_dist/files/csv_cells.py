"""CSV files that are safe to open in a spreadsheet.

A spreadsheet computes a cell that looks like a formula, and a formula can start programs or send other cells to a
server. Texts and class names may come from anybody, so such cells get an apostrophe in front (OWASP, "CSV Injection").
"""

from __future__ import annotations

import csv
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from crepe_dist.files.atomic_write import atomic_text

# Start of a formula. In East Asian versions of spreadsheets, full-width signs also start a formula. Spaces before the
# sign do not always prevent the computation.
_FORMULA = re.compile(r"'*(?:[\t\r]|\s*[=+\-@\uff1d\uff0b\uff0d\uff20]\s*\S)")
# A number is safe although it may start with a sign.
_NUMBER = re.compile(r"\s*[+-]?[\d.,\s]*\d(?:[eE][+-]?\d+)?\s*%?\s*", re.ASCII)
# Name of an empty column that marks a file with escaped cells. The column survives when a spreadsheet saves the file.
ESCAPED_MARKER = "apostrophe before formulas"
PREDICTION_COLUMNS = ("predicted_class", "predicted_probability", "characters_cut", "problem")  # Columns of `predict`.


def write_csv(
    path: Path, rows: Iterable[Mapping[str, Any]], columns: Sequence[str] = (), *, follow: bool = False
) -> None:
    """Write a CSV file atomically, with escaped cells. All rows must have the columns of the first row.

    Args:
        columns: columns of the file if there are no rows.
        follow: see ``atomic_text``.
    """
    rows = iter(rows)
    first = next(rows, None)
    with atomic_text(path, errors="replace", follow=follow) as stream:
        writer = csv.writer(stream, lineterminator="\r\n")
        writer.writerow(map(escape_cell, columns if first is None else first))
        for row in rows if first is None else chain([first], rows):
            writer.writerow(map(escape_cell, row.values()))


def escape_cell(value: Any) -> Any:
    """Return a value for a cell of a CSV file. A text that looks like a formula gets an apostrophe in front."""
    return f"'{value}" if isinstance(value, str) and _is_formula(value) else value


def escape_cells(values: Iterable[Any]) -> list[Any]:
    """Apply ``escape_cell`` to each value."""
    # Most texts start with a letter or a digit, which no formula does. This test saves the call.
    return [value if type(value) is not str or value[:1].isalnum() else escape_cell(value) for value in values]


def unescape_cell(text: str) -> str:
    """Return the text from which ``escape_cell`` made a cell."""
    return text[1:] if text.startswith("'") and _is_formula(text[1:]) else text


def has_escaped_cells(columns: Collection[str]) -> bool:
    """Return whether the cells of a table are escaped, judged by its column names.

    Tables with escaped cells are texts to label, which have a marker column, and predictions.
    """
    return ESCAPED_MARKER in columns or all(name in columns for name in PREDICTION_COLUMNS)


def _is_formula(text: str) -> bool:
    if text[:1].isalnum():
        return False
    return _FORMULA.match(text) is not None and _NUMBER.fullmatch(text) is None
