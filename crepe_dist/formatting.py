"""Formatting for people: numbers, sizes, durations, and untrusted text with control characters escaped."""

from __future__ import annotations

import signal
import unicodedata
from typing import Any, TypeVar, Union

from crepe_dist.errors import escape_to_one_line

Number = Union[int, float]
Item = TypeVar("Item")
MAX_EXCERPT = 1000  # characters of a text in a report


def number(value: Number) -> str:
    """Format a number without decimals and with thousands separators."""
    return f"{value:,.0f}"


def percent(part: Number, whole: Number = 1) -> str:
    """Format a share as a percentage with one decimal; only exact shares are shown as 0.0 % and 100.0 %."""
    if not whole:
        return "–"
    share = 100 * part / whole
    if 0 < share < 0.05:
        return "< 0.1 %"
    if 99.95 <= share < 100:
        return "> 99.9 %"
    return f"{share:.1f} %"


def describe_exit_code(code: int) -> str:
    """Describe the end of a process by its exit code, which is negative for a signal, as the rest of a sentence."""
    return f"ended with code {code}" if code >= 0 else f"was killed by signal {-code} ({signal.strsignal(-code)})"


def size(count: int) -> str:
    """Format a number of bytes in B to TB."""
    value, unit = float(count), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if value < 1000:
            break
        value, unit = value / 1000, larger
    return f"{count} B" if unit == "B" else f"{value:.1f} {unit}"


def duration(seconds: float) -> str:
    """Format a duration in seconds, minutes, hours or days."""
    if seconds < 99.5:
        return f"{seconds:.0f} s" if seconds >= 1 else "1 s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min" if hours < 10 and minutes else f"{round(hours + minutes / 60)} h"
    return f"{round(hours / 24)} days"


def pluralize(count: Number, one: str, many: str = "") -> str:
    """Format a count with its noun, such as "1 row" or "2,000 rows"."""
    return f"{number(count)} {one if count == 1 else many or one + 's'}"


def score_name(is_multilabel: bool) -> str:
    """Name the score that records call accuracy: that of several labels is their micro F1."""
    return "micro F1" if is_multilabel else "accuracy"


def head(items: list[Item], most: int) -> list[Item]:
    """Return the first ``most`` items, or all if only one more follows: naming it takes no more room than "1 more"."""
    return items if len(items) == most + 1 else items[:most]


def join_words(items: list[str]) -> str:
    """Join items as in a sentence: "a, b and c"."""
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}" if items else ""


def excerpt(text: str, limit: int = MAX_EXCERPT) -> str:
    r"""Escape control characters, direction marks and lone surrogates, as in ``\n`` or ``\u202e``.

    A text longer than ``limit`` characters is cut and ends in "…".
    """
    if len(text) > limit:
        text = text[: limit - 1] + "…"
    return escape_to_one_line(text)


def escape_nested(value: Any, limit: int = MAX_EXCERPT) -> Any:
    """Apply ``excerpt`` to every text and key of JSON-like data."""
    if isinstance(value, str):
        return excerpt(value, limit)
    if isinstance(value, dict):
        return {excerpt(key, limit): escape_nested(item, limit) for key, item in value.items()}
    if isinstance(value, list):
        return [escape_nested(item, limit) for item in value]
    return value


def truncate_to_width(text: str, width: int) -> str:
    """Cut a text to at most ``width`` terminal columns; a text that was cut ends in "…"."""
    from rich.cells import cell_len, set_cell_size  # here: most commands format no table

    return text if cell_len(text) <= width else f"{set_cell_size(text, width - 1).rstrip()}…"


def character(symbol: str) -> tuple[str, str, str]:
    """Return a visible form of a character, its code point (``U+0041``) and its Unicode name."""
    category = unicodedata.category(symbol)
    picture = "◌" + symbol if category.startswith("M") else excerpt(symbol)
    if category == "Zs":  # a kind of space, which would show nothing
        picture = symbol.encode("unicode_escape").decode("ascii").strip() or "space"
    return picture, f"U+{ord(symbol):04X}", unicodedata.name(symbol, "no name")
