"""Formatting for users: numbers, sizes, durations, lists, and untrusted text without control characters."""

import signal
import time
import unicodedata
from collections.abc import Sequence
from typing import Any, TypeVar

from crepe_dist.errors import escape_to_one_line

Number = int | float
Item = TypeVar("Item")
MAX_EXCERPT = 1000  # Maximum number of characters of a text that a report shows.


def number(value: Number) -> str:
    """Format a number without decimals and with thousands separators."""
    return f"{value:,.0f}"


def percent(part: Number, whole: Number = 1) -> str:
    """Format the fraction ``part / whole`` as a percentage with one decimal place.

    "0.0 %" and "100.0 %" are returned only for exact values. Values close to them are formatted as "< 0.1 %" and
    "> 99.9 %".
    """
    if not whole:
        return "–"
    percentage = 100 * part / whole
    if 0 < percentage < 0.05:
        return "< 0.1 %"
    if 99.95 <= percentage < 100:
        return "> 99.9 %"
    return f"{percentage:.1f} %"


def describe_exit_code(code: int) -> str:
    """Describe an exit code as the end of a sentence, such as "ended with code 1".

    Args:
        code: Exit code. If it is negative, the process was killed by the signal with the number ``-code``.
    """
    return f"ended with code {code}" if code >= 0 else f"was killed by signal {-code} ({signal.strsignal(-code)})"


def size(count: int) -> str:
    """Format a number of bytes with a unit from B to TB."""
    value, unit = float(count), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if value < 1000:
            break
        value, unit = value / 1000, larger
    return f"{count} B" if unit == "B" else f"{value:.1f} {unit}"


def duration(seconds: float) -> str:
    """Format a duration in a suitable unit, from seconds to days."""
    if seconds < 99.5:
        return f"{seconds:.0f} s" if seconds >= 1 else "1 s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min" if hours < 10 and minutes else f"{round(hours + minutes / 60)} h"
    return f"{round(hours / 24)} days"


TIMESTAMP = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d "  # Pattern of the result of ``timestamp`` and a space.


def timestamp(seconds_ago: float = 0.0) -> str:
    """Format the local date and time, now or some seconds ago, for lines of a log."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(time.time() - seconds_ago))


def pluralize(count: Number, one: str, many: str = "") -> str:
    """Format a count with its noun, such as "1 row" or "2,000 rows"."""
    return f"{number(count)} {one if count == 1 else many or one + 's'}"


def score_name(is_multilabel: bool) -> str:
    """Return the name of the score that is stored as ``accuracy``: micro F1 for multilabel data, otherwise accuracy."""
    return "micro F1" if is_multilabel else "accuracy"


def head(items: list[Item], most: int) -> list[Item]:
    """Return the first ``most`` items, or all items if there is only one more ("1 more" would not be shorter)."""
    return items if len(items) == most + 1 else items[:most]


def join_words(items: list[str]) -> str:
    """Join items for a sentence: "a, b and c"."""
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}" if items else ""


def join_head(items: list[str], most: int) -> str:
    """Join the first ``most`` items like ``join_words``, and count the others: "a, b and 3 more"."""
    shown = head(items, most)
    return join_words([*shown, f"{number(len(items) - len(shown))} more"] if len(shown) < len(items) else shown)


def excerpt(text: str, limit: int = MAX_EXCERPT) -> str:
    r"""Escape control characters, direction marks and lone surrogates, as in ``\n`` or ``\u202e``.

    A text longer than ``limit`` characters is truncated and ends in "…".
    """
    if len(text) > limit:
        text = text[: limit - 1] + "…"
    return escape_to_one_line(text)


def escape_nested(value: Any, limit: int = MAX_EXCERPT) -> Any:
    """Apply ``excerpt`` to all texts and keys of JSON-like data."""
    if isinstance(value, str):
        return excerpt(value, limit)
    if isinstance(value, dict):
        return {excerpt(key, limit): escape_nested(item, limit) for key, item in value.items()}
    if isinstance(value, list):
        return [escape_nested(item, limit) for item in value]
    return value


def align_columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Format the rows of a table as lines with aligned columns."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]


def truncate_to_width(text: str, width: int) -> str:
    """Truncate a text to at most ``width`` terminal columns. A truncated text ends in "…"."""
    from rich.cells import cell_len, set_cell_size  # Imported here because most commands print no table.

    return text if cell_len(text) <= width else f"{set_cell_size(text, width - 1).rstrip()}…"


def character(symbol: str) -> tuple[str, str, str]:
    """Return a visible representation of a character, its code point (``U+0041``) and its Unicode name."""
    category = unicodedata.category(symbol)
    picture = "◌" + symbol if category.startswith("M") else excerpt(symbol)
    if category == "Zs":  # Spaces would be invisible.
        picture = symbol.encode("unicode_escape").decode("ascii").strip() or "space"
    return picture, f"U+{ord(symbol):04X}", unicodedata.name(symbol, "no name")
