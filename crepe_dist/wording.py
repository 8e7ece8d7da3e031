"""Numbers and foreign texts in a form that can be read and does no harm."""

from __future__ import annotations

import unicodedata
from typing import Any, TypeVar, Union

from crepe_dist.errors import shown

Number = Union[int, float]
Item = TypeVar("Item")
LONGEST = 1000  # characters of any text in a report
NAMELESS = {
    "\t": "TAB",
    "\n": "LINE FEED: the end of a line",
    "\r": "CARRIAGE RETURN: the end of a line",
    "Cc": "control character",
    "Cn": "not assigned",
    "Co": "private use",
    "Cs": "half a character: broken text",
}


def number(value: Number) -> str:
    return f"{value:,.0f}"


def percent(part: Number, whole: Number = 1) -> str:
    """One decimal; 0 and 100 are said of nothing and of all only."""
    if not whole:
        return "–"
    share = 100 * part / whole
    if 0 < share < 0.05:
        return "< 0.1 %"
    if 99.95 <= share < 100:
        return "> 99.9 %"
    return f"{share:.1f} %"


def size(count: int) -> str:
    """Bytes in the unit that fits."""
    value, unit = float(count), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if value < 1000:
            break
        value, unit = value / 1000, larger
    return f"{count} B" if unit == "B" else f"{value:.1f} {unit}"


def duration(seconds: float) -> str:
    """In the unit that fits, and the next smaller one where it says something."""
    if seconds < 99.5:
        return f"{seconds:.0f} s" if seconds >= 1 else "1 s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min" if hours < 10 and minutes else f"{round(hours + minutes / 60)} h"
    return f"{round(hours / 24)} days"


def counted(count: Number, one: str, many: str = "") -> str:
    return f"{number(count)} {one if count == 1 else many or one + 's'}"


def first(items: list[Item], most: int) -> list[Item]:
    """The first ``most`` items; all, if one alone would be left out, for to say so takes no less room."""
    return items if len(items) == most + 1 else items[:most]


def listed(items: list[str]) -> str:
    """The items as in a sentence: "a, b and c"."""
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}" if items else ""


def visible(text: str, limit: int = LONGEST) -> str:
    r"""What a terminal or a browser would act on (control characters, changes of direction, halves of characters) is
    written out, as ``\n`` or ``\u202e``; a text longer than ``limit`` ends in "…"."""
    if len(text) > limit:
        text = text[: limit - 1] + "…"
    if text.isprintable():
        return text
    return "".join(map(shown, text))


def clean(value: Any, limit: int = LONGEST) -> Any:
    """JSON-able data with every text made ``visible``, the keys too."""
    if isinstance(value, str):
        return visible(value, limit)
    if isinstance(value, dict):
        return {visible(key, limit): clean(each, limit) for key, each in value.items()}
    if isinstance(value, list):
        return [clean(each, limit) for each in value]
    return value


def cells(text: str) -> int:
    """Columns of a terminal that ``text`` takes, and roughly its width in halves of a letter's height."""
    return sum(map(_cells, text))


def _cells(character: str) -> int:
    if unicodedata.combining(character):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def cut(text: str, width: int) -> str:
    """At most ``width`` cells."""
    if cells(text) <= width:
        return text
    kept, used = [], 1
    for character in text:
        used += _cells(character)
        if used > width:
            break
        kept.append(character)
    return "".join(kept) + "…"


def character(symbol: str) -> tuple[str, str, str]:
    """How one character is shown, its code point, and its name in Unicode."""
    category = unicodedata.category(symbol)
    shown = "◌" + symbol if category.startswith("M") else visible(symbol)
    if category == "Zs":  # a kind of space: its picture is nothing
        shown = symbol.encode("unicode_escape").decode("ascii").strip() or "space"
    name = unicodedata.name(symbol, "") or NAMELESS.get(symbol, "") or NAMELESS.get(category, "")
    return shown, f"U+{ord(symbol):04X}", name
