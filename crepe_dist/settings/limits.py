"""Values that flags and settings accept: each kind reads them from text, checks them, and describes them."""

from __future__ import annotations

import argparse
import difflib
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

LONGEST_TITLE = 80


class Kind:
    """Kind of values, which is the ``type`` of a flag for argparse; ``str`` describes it."""

    metavar: str | None = None

    def read(self, text: str) -> Any:
        """Parse the text of a flag; raise ``ValueError`` if it has another form."""
        return text

    def check(self, value: Any) -> Any:
        """Return a value that is accepted; raise ``ValueError`` for any other."""
        raise NotImplementedError

    def __call__(self, text: str) -> Any:
        try:
            return self.check(self.read(text))
        except (ValueError, OverflowError):
            raise argparse.ArgumentTypeError(f"is {shortened(text)}") from None


@dataclass(frozen=True)
class Limits(Kind):
    """Range of finite numbers.

    Args:
        open_below: exclude the lower end.
        open_above: exclude the upper end.
        word: word that is accepted as well; empty for none.
    """

    kind: type[int] | type[float]
    least: float
    most: float
    open_below: bool = False
    open_above: bool = False
    word: str = ""

    def read(self, text: str) -> int | float | str:
        return text if self.word and text == self.word else self.kind(text)

    def check(self, value: Any) -> int | float | str:
        if self.word and value == self.word:
            return self.word
        if type(value) not in (int, self.kind):
            raise ValueError
        above = value > self.least if self.open_below else value >= self.least
        below = value < self.most if self.open_above else value <= self.most
        if not (above and below):  # NaN, too
            raise ValueError
        return self.kind(value)

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


@dataclass(frozen=True)
class Words(Kind):
    """One of some words."""

    words: tuple[str, ...]

    def check(self, value: Any) -> str:
        if value not in self.words:
            raise ValueError
        return str(value)

    def __str__(self) -> str:
        return f"one of {', '.join(self.words)}"


class Truth(Kind):
    """True or false."""

    metavar = "true|false"

    def read(self, text: str) -> bool:
        return {"true": True, "false": False}.get(text, text)  # type: ignore[arg-type]

    def check(self, value: Any) -> bool:
        if not isinstance(value, bool):
            raise ValueError
        return value

    def __str__(self) -> str:
        return "true or false"


@dataclass(frozen=True)
class Text(Kind):
    """Text of a form.

    Args:
        about: description of the form.
        has_form: test of the form.
    """

    about: str
    has_form: Callable[[str], object]
    metavar: str = "NAME"

    def check(self, value: Any) -> str:
        if not isinstance(value, str) or not self.has_form(value):
            raise ValueError
        value.encode()  # records and manifests are in UTF-8
        return value

    def __str__(self) -> str:
        return self.about


@dataclass(frozen=True)
class OrNull(Kind):
    """Values of a kind, or null."""

    of: Kind

    @property
    def metavar(self) -> str | None:  # type: ignore[override]
        return self.of.metavar

    def read(self, text: str) -> Any:
        return None if text == "null" else self.of.read(text)

    def check(self, value: Any) -> Any:
        return None if value is None else self.of.check(value)

    def __str__(self) -> str:
        return str(self.of)


def is_title(text: str) -> bool:
    """Return whether a text can name a run on a line of its own."""
    return 0 < len(text) <= LONGEST_TITLE and text.isprintable() and text == text.strip()


TITLE = Text(f"1 to {LONGEST_TITLE} printable characters, with no space at either end", is_title)
PATH = Text("a name in UTF-8", re.compile(r"[^\0]*[^\0\s][^\0]*").fullmatch, "PATH")


def near(word: str, known: Iterable[str]) -> str:
    """Return the question whether the most similar known name was meant; empty if none is similar.

    The last parts of dotted names are compared: their common group alone does not count.
    """
    names = {_last_part(name): name for name in sorted(known, key=len, reverse=True)}
    found = difflib.get_close_matches(_last_part(word[:100]), names, 1, 0.7)
    return f"did you mean {names[found[0]]}?" if found else ""


def _last_part(name: str) -> str:
    return name.lstrip("-").rpartition(".")[2]


def shortened(value: object) -> str:
    """Shorten a value for a message; blank text appears in quotes."""
    text = value if isinstance(value, str) and value.strip() else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}…"


def _plain(number: float) -> str:
    return f"{int(number):,}" if number == int(number) else f"{number:,}"
