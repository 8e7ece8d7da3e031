"""Cells of the CSV files that this package writes. A spreadsheet computes a cell that looks like a formula.

A formula can start programs and send other cells to a server, and texts and class names may come from anybody. An
apostrophe before such a cell makes it text (OWASP, "CSV Injection"). It is the only change: ``original`` removes it.
"""

from __future__ import annotations

import re
from typing import Any

# Signs in full width count as the usual ones in East Asian versions. Blanks before them do not always help.
_FORMULA = re.compile(r"'*(?:[\t\r]|\s*[=+\-@\uff1d\uff0b\uff0d\uff20]\s*\S)")
_NUMBER = re.compile(r"\s*[+-]?[\d.,\s]*\d(?:[eE][+-]?\d+)?\s*%?\s*", re.ASCII)


def cell(value: Any) -> Any:
    """Return a value as the cell of a CSV file: a text with an apostrophe first if a spreadsheet would compute it."""
    return f"'{value}" if isinstance(value, str) and _is_formula(value) else value


def original(text: str) -> str:
    """Return the value of a cell that ``cell`` made."""
    return text[1:] if text.startswith("'") and _is_formula(text[1:]) else text


def _is_formula(text: str) -> bool:
    if text[:1].isalnum():  # as most cells do, and no formula
        return False
    return _FORMULA.match(text) is not None and _NUMBER.fullmatch(text) is None
