"""What a number that a user gives may be: said once, beside the setting or flag, and checked in one place."""

from __future__ import annotations

import argparse
import difflib
import math
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Literal, Union, get_args, get_origin

from crepe_dist.errors import UserError


@dataclass(frozen=True)
class Limits:
    """A range of finite numbers; also a ``type`` of argparse, which reads one of them.

    Args:
        kind: int or float.
        least, most: of the range.
        open_below, open_above: the end itself is not in it.
        word: is taken, too, where a flag is read; empty for none.
    """

    kind: type
    least: float
    most: float
    open_below: bool = False
    open_above: bool = False
    word: str = ""

    def allow(self, value: Any) -> bool:
        if isinstance(value, bool) or not isinstance(value, (int, float) if self.kind is float else int):
            return False
        above = value > self.least if self.open_below else value >= self.least
        return bool(above and (value < self.most if self.open_above else value <= self.most))

    def __call__(self, text: str) -> Any:
        if self.word and text == self.word:
            return text
        try:
            value: float = self.kind(text)
        except (ValueError, OverflowError):
            value = math.nan
        if not self.allow(value):
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


def setting(default: Any, limits: Limits) -> Any:
    """A field of ``Settings`` that is a number, or holds several: a list of them, or a dictionary by names."""
    metadata = {"limits": limits}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass
class Settings:
    """What the dataclasses of settings have in common: every value is looked at when one is made.

    Args:
        group: of the class, how the settings are called together; empty where each stands alone.

    Raises:
        UserError: a value of another kind, no choice, or outside its limits.
    """

    group: ClassVar[str] = ""

    def __init_subclass__(cls, group: str = "") -> None:
        cls.group = group

    def __post_init__(self) -> None:
        for each, (hint, limits) in typed(type(self)).items():
            value = getattr(self, each)
            if not _fits(value, hint, limits):
                name = f"{self.group}.{each}" if self.group else each
                raise UserError(f"{name} is {shortened(value)}", remedy=remedy(value, hint, limits))


def typed(settings: type) -> dict[str, tuple[Any, Limits | None]]:
    """Type and limits of each field of a dataclass, whose module does not turn annotations into strings."""
    return {each.name: (each.type, each.metadata.get("limits")) for each in fields(settings)}


def wanted(hint: Any, limits: Limits | None = None) -> str:
    """What a setting takes, for a person to read.

    Args:
        hint: its type.
    """
    kinds = [each for each in _alternatives(hint) if each is not type(None)]
    words = []
    for kind in kinds:
        if get_origin(kind) is Literal:
            words.append(f"one of {', '.join(map(str, get_args(kind)))}")
        elif kind is bool:
            words.append("true or false")
        elif get_origin(kind) is list:
            words.append(f"a list such as [1, 2], each {wanted(get_args(kind)[0], limits)}")
        elif get_origin(kind) is dict:
            words.append(f'names with values such as {{"a": 2}}, each {wanted(get_args(kind)[1], limits)}')
        elif kind in (int, float):
            words.append(str(limits) if limits else "a whole number" if kind is int else "a number")
        else:
            words.append("a name in UTF-8" if kind is str else str(kind))
    return " or ".join(words) + (" (or null)" if type(None) in _alternatives(hint) else "")


def remedy(value: Any, hint: Any, limits: Limits | None = None) -> str:
    choices = [str(choice) for kind in _alternatives(hint) if get_origin(kind) is Literal for choice in get_args(kind)]
    return near(str(value), choices) or f"give {wanted(hint, limits)}"


def near(word: str, known: Iterable[str]) -> str:
    """A question about what was meant; empty if nothing known is like it.

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


def shortened(value: Any) -> str:
    """A value for a message; empty text in quotes."""
    text = value if isinstance(value, str) and value.strip() else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}…"


def _writable(name: str) -> bool:
    """Whether records and manifests can hold it: on Linux a file's name may be any bytes."""
    try:
        return b"\0" not in name.encode("utf-8")
    except UnicodeEncodeError:
        return False


def _alternatives(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) is Union else (hint,)


def _fits(value: Any, hint: Any, limits: Limits | None) -> bool:
    return any(_is(value, kind, limits) for kind in _alternatives(hint))


def _is(value: Any, kind: Any, limits: Limits | None) -> bool:
    if get_origin(kind) is Literal:
        return value in get_args(kind)
    if kind in (int, float):
        return (limits or Limits(kind, -math.inf, math.inf)).allow(value)
    if get_origin(kind) is list:
        return isinstance(value, list) and all(_is(each, get_args(kind)[0], limits) for each in value)
    if get_origin(kind) is dict:
        name, content = get_args(kind)
        return isinstance(value, dict) and all(
            _is(each, name, None) and _is(value[each], content, limits) for each in value
        )
    if kind is str:
        return isinstance(value, str) and value.strip() != "" and _writable(value)
    return isinstance(value, get_origin(kind) or kind)


def _plain(number: float) -> str:
    return f"{int(number):,}" if number == int(number) else f"{number:,}"
