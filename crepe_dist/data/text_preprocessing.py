"""Preprocessing of the text of a row: join the text columns, remove HTML tags, and append the feature values.

The value of a feature column becomes one private Unicode character (``FEATURE_CODE_POINTS``), which no text contains. A
categorical column has a character for each value that is frequent enough. A numeric column has a character for each
interval between quantiles. Columns of both kinds have a character for a missing value. The characters of the values
follow the text. An unknown character precedes each of them, so that the networks hash each value as a word.

Until it is preprocessed, a row is its text, followed by ``FIELD_SEPARATOR`` and the raw value for each feature column.
"""

import math
import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

from crepe_dist.data.markup import without_tags

SEPARATOR = " | "  # Separator between the joined text columns of a row.
FIELD_SEPARATOR = "\x1f"  # Separator between the text of a row and the values of its feature columns.
# Code points of values: the private planes of Unicode, up to ``characters.SYMBOLS``.
FEATURE_CODE_POINTS = range(0xF0000, 0x10FF00)
PRIVATE = re.compile(f"[{chr(FEATURE_CODE_POINTS.start)}-{chr(FEATURE_CODE_POINTS.stop - 1)}]")
POINT_ZERO = ".0"
TIME = re.compile(r"(\d{4}-\d\d-\d\d)[ T](\d\d:\d\d:\d\d)(\.\d+)?", re.ASCII)
MIDNIGHT = "00:00:00"
UNKNOWN_CHARACTER = "\0"  # A character that no alphabet contains.
EMPTY = "empty text"  # Reason why a row without text cannot be classified.


def join_columns(columns: Sequence[str]) -> str:
    """Join the text columns of a row as ``title | text``, like the original Gluon notebook. Omit blank columns."""
    return columns[0] if len(columns) == 1 else SEPARATOR.join(column for column in columns if column.strip())


def append_values(text: str, values: Sequence[str]) -> str:
    """Append the values of a row's feature columns to its text. A separator inside the text becomes a space."""
    return FIELD_SEPARATOR.join([part.replace(FIELD_SEPARATOR, " ") for part in (text, *values)])


def normalize_row(row: str, strip_html: bool) -> str:
    """Return a row as a data set stores it.

    HTML is removed first, because a character reference can produce any character, including the private ones.
    Training, prediction and scoring all read texts with this function.
    """
    text, *values = row.split(FIELD_SEPARATOR)
    text = without_tags(text) if strip_html else text
    return FIELD_SEPARATOR.join([text if text.isascii() else PRIVATE.sub(UNKNOWN_CHARACTER, text), *values])


@dataclass(frozen=True)
class FeatureColumn:
    """Feature column: a categorical or numeric column that is read in addition to the text.

    Args:
        categories: Values of a categorical column, the most frequent first; ``None`` for a numeric column.
        edges: Ascending limits between the intervals of a numeric column.
    """

    name: str
    categories: tuple[str, ...] | None = None
    edges: tuple[float, ...] = ()

    @property
    def size(self) -> int:
        """Number of characters: one for a missing value, and one for each category or interval."""
        return 1 + (len(self.edges) + 1 if self.categories is None else len(self.categories))

    def characters(self, start: int) -> str:
        """Return the characters of the column's values; the first one has the code point ``start``."""
        return "".join(map(chr, range(start, start + self.size)))

    @cached_property
    def _index_of(self) -> dict[str, int]:
        return {normalize_category(name): number for number, name in enumerate(self.categories or (), start=1)}

    def value_index(self, value: str) -> int | None:
        """Return the index of a value's character: 0 if the value is missing, ``None`` if the column has no character
        for it."""
        value = normalize_category(value) if self.categories is not None else normalize_number(value)
        if not value or self.categories is not None:
            return self._index_of.get(value) if value else 0
        return None if (found := parse_number(value)) is None else 1 + bisect_right(self.edges, found)

    def describe_value(self, number: int) -> str:
        """Describe the value or the interval that a character stands for."""
        if number == 0:
            return "missing"
        if self.categories is not None:
            return self.categories[number - 1]
        limits = [f"from {low:g}" for low in self.edges[number - 2 : number - 1] if number > 1]
        limits += [f"below {high:g}" for high in self.edges[number - 1 : number]]
        return " ".join(limits) or "given"


def normalize_category(value: str) -> str:
    """Return a value in a spelling that is equal for all file formats.

    pandas appends ``.0`` to integers, JSON has ``true`` in lower case, Parquet appends zeros to times, and Excel
    appends midnight to dates. These differences are removed.
    """
    value = value.strip()
    if value in ("True", "False"):
        return value.lower()
    if time := TIME.fullmatch(value):
        day, time_of_day, fraction = time[1], time[2], (time[3] or "").rstrip(".0")
        return day if time_of_day == MIDNIGHT and not fraction else f"{day} {time_of_day}{fraction}"
    integer = value.removesuffix(POINT_ZERO)
    if integer == value or not integer.removeprefix("-").isdecimal():
        return value
    return integer if float(integer) else integer.removeprefix("-")


def normalize_number(value: str) -> str:
    """Normalize the value of a numeric column like ``normalize_category``. NaN becomes "", like a missing value."""
    value = normalize_category(value)
    return "" if value.lower().lstrip("+-") == "nan" else value


def parse_number(value: str) -> float | None:
    """Parse ``value`` as a finite number in Python's syntax. Return ``None`` if it is not one."""
    try:
        number = float(value)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


@dataclass(frozen=True)
class TextPreprocessor:
    """Preprocessor of the texts of a data set, and of all texts that its models read.

    Args:
        columns: Names of the text columns. The texts are joined in this order. Empty if the rows had no named columns.
        strip_html: True to remove HTML tags and resolve character references such as ``&amp;``.
        feature_columns: Feature columns, in the order of their values in a row.
    """

    columns: tuple[str, ...] = ()
    strip_html: bool = False
    feature_columns: tuple[FeatureColumn, ...] = ()

    def text(self, row: str) -> str:
        """Return a row as the network reads it. Values that the row does not have count as missing."""
        return self.read(row)[0]

    def validation_error(self, row: str) -> str:
        """Return why a row cannot be classified: it has no text, or an invalid number. Return "" if it can be
        classified.

        A row without text is not used for training either, whatever its feature columns contain.
        """
        return self.read(row)[1]

    def read(self, row: str) -> tuple[str, str]:
        """Return the results of ``text`` and ``validation_error``. HTML is removed only once."""
        text, *values = normalize_row(
            row if self.feature_columns else strip_field_separators(row), self.strip_html
        ).split(FIELD_SEPARATOR)
        problem = "" if text.strip() else EMPTY
        if not self.feature_columns:
            return text, problem
        values += [""] * (len(self.feature_columns) - len(values))
        ends = [text, " "]
        for (column, start), value in zip(self.code_point_ranges(), values):
            number = column.value_index(value)
            ends += (UNKNOWN_CHARACTER, UNKNOWN_CHARACTER if number is None else chr(start + number))
            if number is None and column.categories is None:
                problem = problem or describe_unusable_number(column.name, value)
        return "".join(ends), problem

    @cached_property
    def without_html_stripping(self) -> "TextPreprocessor":
        """Preprocessor for the rows of a prepared data set, whose HTML is already removed."""
        return replace(self, strip_html=False)

    def code_point_ranges(self) -> Iterator[tuple[FeatureColumn, int]]:
        """Yield each feature column, and the code point of its first character."""
        start = FEATURE_CODE_POINTS.start
        for column in self.feature_columns:
            yield column, start
            start += column.size

    def characters(self) -> str:
        """Return the characters of all values, column by column, in the order of their indices."""
        return "".join(column.characters(start) for column, start in self.code_point_ranges())

    def value_characters(self, text: str) -> str:
        """Return the characters of the values at the end of a preprocessed text."""
        return text[len(text) - 2 * len(self.feature_columns) + 1 :: 2]

    def hide_column(self, name: str, row: str) -> str:
        """Replace the value of one column of a row by a value that the network does not read."""
        text, *values = row.split(FIELD_SEPARATOR)
        hidden = [
            UNKNOWN_CHARACTER if column.name == name else value for column, value in zip(self.feature_columns, values)
        ]
        return FIELD_SEPARATOR.join([text, *hidden])

    def display_text(self, row: str) -> str:
        """Return a readable row: the text, and each value after the name of its column."""
        text, *values = row.split(FIELD_SEPARATOR)
        named = [
            f"{column.name}: {value.strip()}" for column, value in zip(self.feature_columns, values) if value.strip()
        ]
        return SEPARATOR.join([text, *named])

    def describe_character(self, character: str) -> str:
        """Return a readable form of a character: the meaning of a value's character, otherwise the character itself.

        ``UNKNOWN_CHARACTER`` becomes a space.
        """
        for column, start in self.code_point_ranges():
            if start <= ord(character) < start + column.size:
                return f"| {column.name}: {column.describe_value(ord(character) - start)}"
        return character.replace(UNKNOWN_CHARACTER, " ")

    def to_dict(self) -> dict[str, Any]:
        """Return the preprocessor as JSON-like data. The key ``feature_columns`` may be missing."""
        return {name: value for name, value in asdict(self).items() if value or name != "feature_columns"}

    @classmethod
    def from_dict(cls, saved: dict[str, Any]) -> "TextPreprocessor":
        """Restore a preprocessor from the result of ``to_dict``."""
        feature_columns = [
            FeatureColumn(
                str(column["name"]),
                None if column["categories"] is None else tuple(map(str, column["categories"])),
                tuple(map(float, column["edges"])),
            )
            for column in saved.get("feature_columns", ())
        ]
        return cls(tuple(map(str, saved["columns"])), bool(saved["strip_html"]), tuple(feature_columns))


def describe_unusable_number(name: str, value: str) -> str:
    """Describe a value that is not a finite number. Return "" for a finite number or a missing value."""
    return (
        f"unusable number: {name} is {value!r:.40}" if normalize_number(value) and parse_number(value) is None else ""
    )


def strip_field_separators(text: str) -> str:
    """Return a text without field separators, so that no part of the text can be mistaken for a feature value."""
    return text.replace(FIELD_SEPARATOR, " ")
