"""Composition of a document's text: columns joined in order, HTML tags removed, and values of further columns.

A value of a column beside the text is one character, a private one that no text contains (``VALUES``): a category has a
character for each value that is frequent enough, a number one for each interval between quantiles, and both have one
for a missing value. It stands alone after the text, so that the networks hash it as a word. Until it is composed, a row
is its text with ``UNIT`` and the value as it was read for each column.
"""

from __future__ import annotations

import math
import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

from crepe_dist.data.markup import without_tags

SEPARATOR = " | "
FIELD_SEPARATOR = "\x1f"  # between the text of a row and the values of its columns
FEATURE_CODE_POINTS = range(0xF0000, 0x10FF00)  # the private planes of Unicode, up to ``characters.SYMBOLS``
PRIVATE = re.compile(f"[{chr(FEATURE_CODE_POINTS.start)}-{chr(FEATURE_CODE_POINTS.stop - 1)}]")
POINT_ZERO = ".0"
TIME = re.compile(r"(\d{4}-\d\d-\d\d)[ T](\d\d:\d\d:\d\d)(\.\d+)?", re.ASCII)
MIDNIGHT = "00:00:00"
UNKNOWN_CHARACTER = "\0"  # is unknown to every alphabet
EMPTY = "empty text"


def join_columns(columns: Sequence[str]) -> str:
    """Join the text columns of a row as ``title | text``, as the notebook does, except for blank ones."""
    return columns[0] if len(columns) == 1 else SEPARATOR.join(column for column in columns if column.strip())


def append_values(text: str, values: Sequence[str]) -> str:
    """Append the values of a row's columns to its text, if it has any; nothing in the text can pass for a value."""
    return FIELD_SEPARATOR.join([each.replace(FIELD_SEPARATOR, " ") for each in (text, *values)])


def normalize_row(row: str, strip_html: bool) -> str:
    """Return a row as a data set stores it: HTML is removed first, since an entity can spell any character.

    Training, predictions and scores all read texts by this function.
    """
    text, *values = row.split(FIELD_SEPARATOR)
    text = without_tags(text) if strip_html else text
    return FIELD_SEPARATOR.join([text if text.isascii() else PRIVATE.sub(UNKNOWN_CHARACTER, text), *values])


@dataclass(frozen=True)
class FeatureColumn:
    """Column beside the text.

    Args:
        categories: its values, the most frequent first, or ``None`` for a column of numbers.
        edges: ascending limits between the intervals of a number.
    """

    name: str
    categories: tuple[str, ...] | None = None
    edges: tuple[float, ...] = ()

    @property
    def size(self) -> int:
        """Number of characters: one for a missing value, and one for each category or interval."""
        return 1 + (len(self.edges) + 1 if self.categories is None else len(self.categories))

    def characters(self, start: int) -> str:
        """Return the characters of its values, of which the first has the code point ``start``."""
        return "".join(map(chr, range(start, start + self.size)))

    @cached_property
    def _number(self) -> dict[str, int]:
        return {normalize_category(name): number for number, name in enumerate(self.categories or (), start=1)}

    def value_index(self, value: str) -> int | None:
        """Return the number of a value's character, 0 for a missing one; ``None`` for one that is not read."""
        value = normalize_category(value) if self.categories is not None else normalize_number(value)
        if not value or self.categories is not None:
            return self._number.get(value) if value else 0
        return None if (found := parse_number(value)) is None else 1 + bisect_right(self.edges, found)

    def describe_value(self, number: int) -> str:
        """Describe the values of a character by its number."""
        if number == 0:
            return "missing"
        if self.categories is not None:
            return self.categories[number - 1]
        limits = [f"from {low:g}" for low in self.edges[number - 2 : number - 1] if number > 1]
        limits += [f"below {high:g}" for high in self.edges[number - 1 : number]]
        return " ".join(limits) or "given"


def normalize_category(value: str) -> str:
    """Return a value as formats spell it alike.

    Whole numbers are without the ``.0`` of pandas, ``true`` is as in JSON, and times are without the zeros of
    Parquet and the midnight that Excel adds to a date.
    """
    value = value.strip()
    if value in ("True", "False"):
        return value.lower()
    if time := TIME.fullmatch(value):
        day, of_day, fraction = time[1], time[2], (time[3] or "").rstrip(".0")
        return day if of_day == MIDNIGHT and not fraction else f"{day} {of_day}{fraction}"
    whole = value.removesuffix(POINT_ZERO)
    if whole == value or not whole.removeprefix("-").isdecimal():
        return value
    return whole if float(whole) else whole.removeprefix("-")


def normalize_number(value: str) -> str:
    """Return a value of a column of numbers as ``category`` does; NaN, which CSV spells out, is a missing one."""
    value = normalize_category(value)
    return "" if value.lower().lstrip("+-") == "nan" else value


def parse_number(value: str) -> float | None:
    """Read a finite number, as Python writes it; ``None`` if it is none."""
    try:
        found = float(value)
    except ValueError:
        return None
    return found if math.isfinite(found) else None


@dataclass(frozen=True)
class TextPreprocessor:
    """Composition of the texts of a data set, and of all texts that its models read.

    Args:
        columns: names of the columns that are joined, in order; empty if the rows had no named columns.
        strip_html: remove HTML tags and resolve character references such as ``&amp;``.
        beside: columns beside the text, in the order of their values in a row.
    """

    columns: tuple[str, ...] = ()
    strip_html: bool = False
    beside: tuple[FeatureColumn, ...] = ()

    def text(self, row: str) -> str:
        """Return a row as the network reads it; values that it does not have count as missing."""
        return self.read(row)[0]

    def validation_error(self, row: str) -> str:
        """Return why a row cannot be classified: it has no text, or a number is none; empty if it can.

        A row without text is not trained on either, whatever its columns hold.
        """
        return self.read(row)[1]

    def read(self, row: str) -> tuple[str, str]:
        """Return ``text`` and ``problem`` of a row. Its HTML is removed only one time."""
        text, *values = normalize_row(row if self.beside else strip_field_separators(row), self.strip_html).split(
            FIELD_SEPARATOR
        )
        problem = "" if text.strip() else EMPTY
        if not self.beside:
            return text, problem
        values += [""] * (len(self.beside) - len(values))
        ends = [text, " "]
        for (column, start), value in zip(self.code_point_ranges(), values):
            number = column.value_index(value)
            ends += (UNKNOWN_CHARACTER, UNKNOWN_CHARACTER if number is None else chr(start + number))
            if number is None and column.categories is None:
                problem = problem or describe_unusable_number(column.name, value)
        return "".join(ends), problem

    @cached_property
    def without_html_stripping(self) -> TextPreprocessor:
        """Composition of the rows of a data set, of which HTML has been removed already."""
        return replace(self, strip_html=False)

    def code_point_ranges(self) -> Iterator[tuple[FeatureColumn, int]]:
        """Yield each column beside the text, and the code point of its first character."""
        start = FEATURE_CODE_POINTS.start
        for column in self.beside:
            yield column, start
            start += column.size

    def characters(self) -> str:
        """Return the characters of all values, those of each column in the order of its numbers."""
        return "".join(column.characters(start) for column, start in self.code_point_ranges())

    def value_characters(self, text: str) -> str:
        """Return the characters of the values at the end of a composed text."""
        return text[len(text) - 2 * len(self.beside) + 1 :: 2]

    def hide_column(self, name: str, row: str) -> str:
        """Return a row without the value of a column, which then counts as one that is not read."""
        text, *values = row.split(FIELD_SEPARATOR)
        hidden = [UNKNOWN_CHARACTER if column.name == name else value for column, value in zip(self.beside, values)]
        return FIELD_SEPARATOR.join([text, *hidden])

    def display_text(self, row: str) -> str:
        """Return a row for people: the text, and each value after its column's name."""
        text, *values = row.split(FIELD_SEPARATOR)
        named = [f"{column.name}: {value.strip()}" for column, value in zip(self.beside, values) if value.strip()]
        return SEPARATOR.join([text, *named])

    def describe_character(self, character: str) -> str:
        """Return what the character of a value stands for, for people; other characters as they are, but ``UNREAD``."""
        for column, start in self.code_point_ranges():
            if start <= ord(character) < start + column.size:
                return f"| {column.name}: {column.describe_value(ord(character) - start)}"
        return character.replace(UNKNOWN_CHARACTER, " ")

    def to_dict(self) -> dict[str, Any]:
        """Return the composition as JSON-like data; ``beside`` only if there are such columns."""
        return {name: value for name, value in asdict(self).items() if value or name != "beside"}

    @classmethod
    def from_dict(cls, saved: dict[str, Any]) -> TextPreprocessor:
        """Restore a composition from ``to_dict``'s result."""
        beside = [
            FeatureColumn(
                str(each["name"]),
                None if each["categories"] is None else tuple(map(str, each["categories"])),
                tuple(map(float, each["edges"])),
            )
            for each in saved.get("beside", ())
        ]
        return cls(tuple(map(str, saved["columns"])), bool(saved["strip_html"]), tuple(beside))


def describe_unusable_number(name: str, value: str) -> str:
    """Describe a value that is neither missing nor a finite number; empty if it is one of them."""
    return (
        f"unusable number: {name} is {value!r:.40}" if normalize_number(value) and parse_number(value) is None else ""
    )


def strip_field_separators(text: str) -> str:
    """Return a text that has no values, whatever its characters are."""
    return text.replace(FIELD_SEPARATOR, " ")
