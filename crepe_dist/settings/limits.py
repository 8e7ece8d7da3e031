"""Ranges of the numbers that a person gives, declared once beside the setting or the flag."""

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
    """A range of finite numbers: pydantic checks settings annotated with it, argparse reads flags of this ``type``.

    Args:
        kind: int or float.
        least, most: ends of the range.
        open_below, open_above: exclude the end itself.
        word: also accepted in a flag; empty for none.
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
            value = float("nan")  # which no range holds
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
    return Limits(int, least, most, word=word)


def real(least: float, most: float, *, open_below: bool = False, open_above: bool = False) -> Limits:
    return Limits(float, least, most, open_below, open_above)


def near(word: str, known: Iterable[str]) -> str:
    """Ask whether the most similar known name was meant; empty if none is similar.

    Of dotted names, the last parts must be alike: another setting of the same group is not meant.
    """

    def alike(one: str, other: str) -> float:
        return difflib.SequenceMatcher(None, one, other).ratio()

    word = word[:100]
    found = [(alike(_last_part(each), _last_part(word)), alike(each, word), each) for each in known]
    best = max((last + whole, each) for last, whole, each in [*found, (0.0, 0.0, "")] if last >= 0.7 or not each)
    return f"did you mean {best[1]}?" if best[1] else ""


def _last_part(name: str) -> str:
    return name.lstrip("-").rpartition(".")[2]


def shortened(value: object) -> str:
    """Quote a value in a message; empty text in quotes."""
    text = value if isinstance(value, str) and value.strip() else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}…"


def _plain(number: float) -> str:
    return f"{int(number):,}" if number == int(number) else f"{number:,}"
