"""Settings as dataclass fields: help texts, types of the values, and validation.

Flags, YAML keys and Python arguments are all generated from these fields, so each value is checked in one place.
"""

import difflib
import re
from collections.abc import Callable, Iterable
from dataclasses import Field, dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

from crepe_dist.errors import UserError

Case = Literal["fold", "keep", "notebook"]
CASES: tuple[Case, ...] = get_args(Case)  # How a character encoder reads case; see data/char_encoder.py.
MAX_DOCUMENT_LENGTH = 1 << 20  # Maximum document length, in characters.
DEVICES = ("auto", "gpu", "cpu")
FORMATS = ("csv", "tsv", "jsonl", "parquet", "xlsx", "fasttext", "folder")  # Formats of labelled files.
MAX_COUNT = 10**9  # Maximum number of steps, seconds or epochs. A number that is larger than this is probably a typo.


class ValueType:
    """Type of a setting's values. argparse calls it to parse the text of a flag.

    ``str()`` of a type returns a description of the accepted values, for the help and for error messages.

    Attributes:
        metavar: Placeholder of the value in the help. If it is ``None``, the help shows the name of the setting in
            capital letters.
    """

    metavar: str | None = None

    def read(self, text: str) -> Any:
        """Parse the text of a flag. Raise ``ValueError`` if the text cannot be parsed."""
        return text

    def check(self, value: Any) -> Any:
        """Return the value if it is accepted. Raise ``ValueError`` otherwise."""
        raise NotImplementedError

    def __call__(self, text: str) -> Any:
        return self.check(self.read(text))


@dataclass(frozen=True)
class Range(ValueType):
    """Type of a finite number within a range.

    Args:
        kind: ``int`` or ``float``.
        least: Lower limit.
        most: Upper limit.
        word: Word that is accepted instead of a number, such as ``auto``. If it is empty, only numbers are accepted.
        open_below: Whether the lower limit itself is excluded.
        open_above: Whether the upper limit itself is excluded.
    """

    kind: type
    least: float
    most: float
    word: str = ""
    open_below: bool = False
    open_above: bool = False

    def read(self, text: str) -> Any:
        return text if self.word and text == self.word else self.kind(text)

    def check(self, value: Any) -> Any:
        if self.word and value == self.word:
            return value
        above = value > self.least if self.open_below else value >= self.least
        below = value < self.most if self.open_above else value <= self.most
        if type(value) not in (int, self.kind) or not (above and below):  # NaN fails both comparisons.
            raise ValueError
        return self.kind(value)

    def __str__(self) -> str:
        noun = "an integer" if self.kind is int else "a number"
        start = "above" if self.open_below else "from"
        joint = " to below" if self.open_above else ", at most" if self.open_below else " to"
        least, most = (f"{int(limit) if limit == int(limit) else limit:,}" for limit in (self.least, self.most))
        return f"{noun} {start} {least}{joint} {most}{f', or {self.word}' * bool(self.word)}"


# Ranges of integers, and of finite floats.
int_range, float_range = partial(Range, int), partial(Range, float)


@dataclass(frozen=True)
class Choice(ValueType):
    """Type of a value that must be one of several words."""

    words: tuple[str, ...]

    @property
    def metavar(self) -> str:  # type: ignore[override]
        return f"{{{','.join(self.words)}}}"

    def check(self, value: Any) -> str:
        if value not in self.words:
            raise ValueError
        return str(value)

    def __str__(self) -> str:
        return f"one of {', '.join(self.words)}"


class Boolean(ValueType):
    """Type of a value that is true or false."""

    metavar = "true|false"

    def read(self, text: str) -> Any:
        return {"true": True, "false": False}.get(text, text)

    def check(self, value: Any) -> bool:
        if not isinstance(value, bool):
            raise ValueError
        return value

    def __str__(self) -> str:
        return "true or false"


@dataclass(frozen=True)
class String(ValueType):
    """Type of a string. Python callers may also pass a ``Path``.

    Args:
        description: Description of the accepted texts.
        is_valid: Function that returns a true value for an accepted text.
    """

    description: str
    is_valid: Callable[[str], object]
    metavar: str = "NAME"

    def check(self, value: Any) -> Any:
        if not isinstance(value, (str, Path)) or not self.is_valid(str(value)):
            raise ValueError
        return str(value)

    def __str__(self) -> str:
        return self.description


class PathType(String):
    """Type of a path. The checked value is a ``Path``."""

    def check(self, value: Any) -> Any:
        return Path(super().check(value))


@dataclass(frozen=True)
class Wrapped(ValueType):
    """Base class of types that extend another type: to multiple values (``Repeated``), or to null (``Nullable``).

    Args:
        of: Type of a single value.
    """

    of: ValueType

    @property
    def metavar(self) -> str | None:  # type: ignore[override]
        return self.of.metavar

    def __str__(self) -> str:
        return str(self.of)


class Repeated(Wrapped):
    """Type of a tuple of values. On the command line, the flag is repeated for each value."""

    def check(self, value: Any) -> tuple[Any, ...]:
        return tuple(map(self.of.check, (value,) if isinstance(value, (str, Path)) else value))


class Nullable(Wrapped):
    """Type of a value that may be null."""

    def read(self, text: str) -> Any:
        return None if text == "null" else self.of.read(text)

    def check(self, value: Any) -> Any:
        return None if value is None else self.of.check(value)


PATH = String("a path in UTF-8", re.compile(r"(?=.*\S)[^\0\ud800-\udfff]*", re.DOTALL).fullmatch, "PATH")
NON_EMPTY = String("a name", str.strip)
COLUMN = String("the name or number of a column", str.strip, "COLUMN")
ANY_TEXT = String("a text", lambda _: True, "TEXT")
PATH_ARGUMENT = PathType("a name", re.compile(r"(?=.*\S)[^\0]*", re.DOTALL).fullmatch, "PATH")


def setting(
    default: Any,
    help: str,
    kind: ValueType | None = None,
    *also: str,
    flag: str = "",
    positional: str | None = None,
    networks: tuple[str, ...] = (),
) -> Any:
    """Declare a setting as a field of a dataclass.

    Args:
        default: Default value. If it is ``None``, the setting also accepts null.
        help: Text for the help. Its first sentence defines the setting. A sentence that starts with "Default:" is
            only needed if the default is computed.
        kind: Type of the values. If it is ``None``, the values are the words of the field's ``Literal``, or booleans.
        also: Additional names of the flag.
        flag: Name of the flag. If it is empty, the flag is the name of the setting with hyphens.
        positional: ``nargs`` of argparse if the setting is a positional argument. An empty string means exactly one
            value. If it is ``None``, the setting has a flag.
        networks: Networks that use the setting. The help lists them first. If there are none, all networks use the
            setting.
    """
    help = f"({', '.join(networks)}) {help}" if networks else help
    metadata = {"help": help, "kind": kind, "also": also, "flag": flag, "positional": positional}
    return field(default=default, metadata=metadata)


def kind_of(setting: "Field[Any]") -> ValueType:
    """Return the type of a setting's values."""
    kind: ValueType = setting.metadata["kind"] or (
        Boolean() if setting.type is bool else Choice(get_args(setting.type))
    )
    return Nullable(kind) if setting.default is None else kind


@dataclass
class Settings:
    """Base class of the groups of settings. All values are checked when an instance is created.

    Args:
        group: Name of the group in YAML files. If it is empty, the settings belong to no group.

    Raises:
        UserError: A value has the wrong type or is out of range.
    """

    group_name: ClassVar[str] = ""

    def __init_subclass__(cls, group: str = "") -> None:
        cls.group_name = group

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            if "kind" not in item.metadata:  # A group of settings, or another field.
                if isinstance(item.type, type) and issubclass(item.type, Settings) and not isinstance(value, item.type):
                    raise UserError(f"{item.name} is {truncate(value)}", remedy=f"give {item.type.__name__}(…)")
                continue
            kind, name = kind_of(item), qualified_name(type(self), item)
            try:
                setattr(self, item.name, kind.check(value))
            except (ValueError, TypeError, OverflowError):
                raise invalid_value_error(name, value, kind) from None

    @classmethod
    def flag(cls, name: str) -> str:
        """Map the name of a setting to its flag."""
        own = next((item.metadata["flag"] for item in settings_of(cls) if item.name == name), "")
        return own or f"--{name}".replace("_", "-")


def settings_of(group: type[Settings]) -> list["Field[Any]"]:
    """List the settings of a group, without the settings of nested groups."""
    return [item for item in fields(group) if "kind" in item.metadata]


def qualified_name(group: type[Settings], setting: "Field[Any]") -> str:
    """Return the name of a setting with its group, such as ``training.epochs``."""
    return f"{group.group_name}.{setting.name}" if group.group_name else setting.name


def invalid_value_error(name: str, value: object, kind: ValueType) -> UserError:
    """Return the error for a value that a type does not accept."""
    return UserError(f"{name} is {truncate(value)}", remedy=f"give {kind}")


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return a question that suggests the most similar known name. Return "" if no name is similar.

    Only the last parts of dotted names are compared. Otherwise, any two settings of the same group would be similar.
    """
    names = {_last_part(name): name for name in sorted(known, key=len, reverse=True)}
    matches = difflib.get_close_matches(_last_part(word[:100]), names, 1, 0.7)
    return f"did you mean {names[matches[0]]}?" if matches else ""


def _last_part(name: str) -> str:
    return name.lstrip("-").rpartition(".")[2]


def truncate(value: object) -> str:
    """Return a value as text of at most 60 characters, for a message. Blank text is quoted."""
    text = value if isinstance(value, str) and value.strip() else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}…"
