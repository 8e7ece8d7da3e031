"""CSV files that are safe to open in a spreadsheet.

A spreadsheet evaluates a cell that looks like a formula, and a formula can start programs or send other cells to a
server. Texts and class names are untrusted, so an apostrophe is put in front of such cells (OWASP, "CSV Injection").
"""

import csv
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from crepe_dist.files.atomic_write import atomic_text

# Start of a formula. In East Asian versions of spreadsheets, full-width signs also start a formula. Some spreadsheets
# evaluate a formula even if spaces precede the sign.
_FORMULA = re.compile(r"'*(?:[\t\r]|\s*[=+\-@\uff1d\uff0b\uff0d\uff20]\s*\S)")
# A number is safe, even if it starts with a sign.
_NUMBER = re.compile(r"\s*[+-]?[\d.,\s]*\d(?:[eE][+-]?\d+)?\s*%?\s*", re.ASCII)
PREDICTION_COLUMNS = ("predicted_class", "predicted_probability", "characters_cut", "problem")  # Columns of `predict`.


def write_csv(
    path: Path, rows: Iterable[Mapping[str, Any]], columns: Sequence[str] = (), *, follow: bool = False
) -> None:
    """Write a CSV file atomically, with escaped cells. All rows must have the columns of the first row.

    Args:
        columns: Columns of the file if there are no rows.
        follow: See ``atomic_text``.
    """
    rows = iter(rows)
    first = next(rows, None)
    with atomic_text(path, errors="replace", follow=follow) as stream:
        writer = csv.writer(stream, lineterminator="\r\n")
        writer.writerow(map(escape_cell, columns if first is None else first))
        for row in rows if first is None else chain([first], rows):
            writer.writerow(map(escape_cell, row.values()))


def escape_cell(value: Any) -> Any:
    """Return the cell for a value. If the value is a text that looks like a formula, prefix it with an apostrophe."""
    return f"'{value}" if isinstance(value, str) and _is_formula(value) else value


def escape_cells(values: Iterable[Any]) -> list[Any]:
    """Apply ``escape_cell`` to each value."""
    # Most texts start with a letter or a digit. A formula never does, so the slow check is skipped for these texts.
    return [value if type(value) is not str or value[:1].isalnum() else escape_cell(value) for value in values]


def unescape_cell(text: str) -> str:
    """Undo ``escape_cell``: return the original text of a cell."""
    return text[1:] if text.startswith("'") and _is_formula(text[1:]) else text


def has_escaped_cells(columns: Collection[str]) -> bool:
    """Return whether the column names show that the cells of a table are escaped: they are those of predictions."""
    return all(name in columns for name in PREDICTION_COLUMNS)


def _is_formula(text: str) -> bool:
    if text[:1].isalnum():
        return False
    return _FORMULA.match(text) is not None and _NUMBER.fullmatch(text) is None
