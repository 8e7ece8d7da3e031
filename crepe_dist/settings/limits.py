"""Ranges of numeric settings and flags, each declared once; help for misspelt names."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from pydantic import GetCoreSchemaHandler
    from pydantic_core import CoreSchema


@dataclass(frozen=True)
class Limits:
    """Range of finite numbers, for pydantic as an annotation of a setting and for argparse as the ``type`` of a flag.

    Args:
        open_below: exclude the lower end.
        open_above: exclude the upper end.
        word: word that a flag accepts as well; empty for none.
    """

    kind: type[int] | type[float]
    least: float
    most: float
    open_below: bool = False
    open_above: bool = False
    word: str = ""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        ends = {"gt" if self.open_below else "ge": self.least, "lt" if self.open_above else "le": self.most}
        return cast("CoreSchema", {**handler(source), **ends})

    def __call__(self, text: str) -> int | float | str:
        if self.word and text == self.word:
            return text
        try:
            value = self.kind(text)
        except (ValueError, OverflowError):
            value = float("nan")  # outside every range
        above = value > self.least if self.open_below else value >= self.least
        below = value < self.most if self.open_above else value <= self.most
        if not (above and below):
            raise argparse.ArgumentTypeError(f"is {shortened(text)}")
        return value

    def __str__(self) -> str:
        noun = "a whole number" if self.kind is int else "a number"
        start = "above" if self.open_below else "from"
        end = " to below" if self.open_above else ", at most" if self.open_below else " to"
        return f"{noun} {start} {_plain(self.least)}{end} {_plain(self.most)}{f' or {self.word}' * bool(self.word)}"


def whole(least: int, most: int, word: str = "") -> Limits:
    """Return the limits of a whole number."""
    return Limits(int, least, most, word=word)


def real(least: float, most: float, word: str = "", *, open_below: bool = False, open_above: bool = False) -> Limits:
    """Return the limits of a real number."""
    return Limits(float, least, most, open_below, open_above, word)


def near(word: str, known: Iterable[str]) -> str:
    """Return the question whether the most similar known name was meant; empty if none is similar.

    The last parts of dotted names must be similar: their common group alone does not count.
    """

    def alike(one: str, other: str) -> float:
        return difflib.SequenceMatcher(None, one, other).ratio()

    word = word[:100]
    rated = [(alike(_last_part(name), _last_part(word)), alike(name, word), name) for name in known]
    best = max((last + whole, name) for last, whole, name in [*rated, (0.0, 0.0, "")] if last >= 0.7 or not name)
    return f"did you mean {best[1]}?" if best[1] else ""


def _last_part(name: str) -> str:
    return name.lstrip("-").rpartition(".")[2]


def shortened(value: object) -> str:
    """Shorten a value for a message; blank text appears in quotes."""
    text = value if isinstance(value, str) and value.strip() else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}…"


def _plain(number: float) -> str:
    return f"{int(number):,}" if number == int(number) else f"{number:,}"
