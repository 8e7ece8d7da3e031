"""Fields of dataclasses from which flags are made: their help, and the kind of values that they accept."""

import difflib
import re
from collections.abc import Iterable, Sequence
from dataclasses import Field, dataclass, field, fields
from pathlib import Path
from typing import Any, Callable, ClassVar, Literal, Optional, TypeVar, get_args

from crepe_dist.errors import UserError
from crepe_dist.settings.aliases import current_value

Mode = Literal["paper", "full", "notebook"]
MODES: tuple[Mode, ...] = get_args(Mode)  # of the encoding; see data/char_encoder.py
MAX_DOCUMENT_LENGTH = 1 << 20  # characters
DEVICES = ("auto", "gpu", "cpu")
FORMATS = ("csv", "tsv", "jsonl", "parquet", "xlsx", "fasttext", "folder")  # of labelled files
HEADERS = ("auto", "yes", "no")  # whether the first line of a CSV or TSV file names the columns
MAX_COUNT = 10**9  # steps, seconds or epochs; more is a typing error
MAX_NAME_LENGTH = 80
Own = TypeVar("Own", bound="Settings")


class ValueType:
    """Kind of values, which is the ``type`` of a flag for argparse; ``str`` describes it."""

    metavar: Optional[str] = None

    def read(self, text: str) -> Any:
        """Parse the text of a flag; raise ``ValueError`` if it has another form."""
        return text

    def check(self, value: Any) -> Any:
        """Return a value that is accepted; raise ``ValueError`` for any other."""
        raise NotImplementedError

    def __call__(self, text: str) -> Any:
        return self.check(self.read(text))


@dataclass(frozen=True)
class Range(ValueType):
    """Range of finite numbers.

    Args:
        open_below: exclude the lower end.
        open_above: exclude the upper end.
        word: word that is accepted as well; empty for none.
    """

    kind: type
    least: float
    most: float
    open_below: bool = False
    open_above: bool = False
    word: str = ""

    def read(self, text: str) -> Any:
        return text if self.word and text == self.word else self.kind(text)

    def check(self, value: Any) -> Any:
        if self.word and value == self.word:
            return value
        above = value > self.least if self.open_below else value >= self.least
        below = value < self.most if self.open_above else value <= self.most
        if type(value) not in (int, self.kind) or not (above and below):  # NaN, too
            raise ValueError
        return self.kind(value)

    def __str__(self) -> str:
        noun = "a whole number" if self.kind is int else "a number"
        start = "above" if self.open_below else "from"
        end = " to below" if self.open_above else ", at most" if self.open_below else " to"
        least, most = (f"{int(each) if each == int(each) else each:,}" for each in (self.least, self.most))
        return f"{noun} {start} {least}{end} {most}{f' or {self.word}' * bool(self.word)}"


def int_range(least: int, most: int, word: str = "") -> Range:
    """Return the limits of a whole number."""
    return Range(int, least, most, word=word)


def float_range(
    least: float, most: float, word: str = "", *, open_below: bool = False, open_above: bool = False
) -> Range:
    """Return the limits of a real number."""
    return Range(float, least, most, open_below, open_above, word)


@dataclass(frozen=True)
class Choice(ValueType):
    """One of some words."""

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
    """True or false."""

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
    """Text of a form, which may be a path in Python.

    Args:
        about: description of the form.
        has_form: test of the form.
    """

    about: str
    has_form: Callable[[str], object]
    metavar: str = "NON_EMPTY"

    def check(self, value: Any) -> Any:
        if not isinstance(value, (str, Path)) or not self.has_form(str(value)):
            raise ValueError
        return str(value)

    def __str__(self) -> str:
        return self.about


class PathType(String):
    """Name of a file or folder."""

    def check(self, value: Any) -> Any:
        return Path(super().check(value))


@dataclass(frozen=True)
class Wrapped(ValueType):
    """Values of another kind, with more or less of them."""

    of: ValueType

    @property
    def metavar(self) -> Optional[str]:  # type: ignore[override]
        return self.of.metavar

    def __str__(self) -> str:
        return str(self.of)


class Repeated(Wrapped):
    """Any number of values of a kind; a flag is repeated for them."""

    def check(self, value: Any) -> tuple[Any, ...]:
        return tuple(map(self.of.check, (value,) if isinstance(value, (str, Path)) else value))


class Nullable(Wrapped):
    """Values of a kind, or null."""

    def read(self, text: str) -> Any:
        return None if text == "null" else self.of.read(text)

    def check(self, value: Any) -> Any:
        return None if value is None else self.of.check(value)


def is_title(text: str) -> bool:
    """Return whether a text can name a run on a line of its own."""
    return 0 < len(text) <= MAX_NAME_LENGTH and text.isprintable() and text == text.strip()


RUN_NAME = String(f"1 to {MAX_NAME_LENGTH} printable characters, with no space at either end", is_title)
PATH = String("a name in UTF-8", re.compile(r"(?=.*\S)[^\0\ud800-\udfff]*", re.DOTALL).fullmatch, "PATH")
NON_EMPTY = String("a name", str.strip)
COLUMN = String("the name or number of a column", str.strip, "COLUMN")
ANY_TEXT = String("a text", lambda _: True, "TEXT")
PATH_ARGUMENT = PathType("a name", re.compile(r"(?=.*\S)[^\0]*", re.DOTALL).fullmatch, "PATH")


def setting(
    default: Any,
    help: str,
    kind: Optional[ValueType] = None,
    *also: str,
    flag: str = "",
    positional: Optional[str] = None,
    networks: tuple[str, ...] = (),
) -> Any:
    """Declare a setting as a field of a dataclass whose module does not postpone annotations.

    Args:
        default: default value; ``None``: null is accepted, too.
        kind: kind of its values; ``None``: the words of the field's ``Literal``, or true and false.
        also: other names of its flag.
        flag: name of its flag; empty: the setting's name with hyphens.
        positional: number of its arguments as in argparse, empty for one, if it has no flag.
        networks: networks that read it. Its help begins with their names. Empty: all networks read it.
    """
    help = f"({', '.join(networks)}) {help}" if networks else help
    metadata = {"help": help, "kind": kind, "also": also, "flag": flag}
    metadata |= {"positional": positional, "networks": networks}
    return field(default=default, metadata=metadata)


def kind_of(setting: "Field[Any]") -> ValueType:
    """Return the kind of a setting's values."""
    kind: ValueType = setting.metadata["kind"] or (
        Boolean() if setting.type is bool else Choice(get_args(setting.type))
    )
    return Nullable(kind) if setting.default is None else kind


@dataclass
class Settings:
    """Base of the groups of settings.

    Args:
        group: name of the group; empty for ungrouped settings.

    Attributes:
        given: names of the settings that the user gave, default values included; only these can be refused.

    Raises:
        UserError: a value is of another kind.
    """

    group: ClassVar[str] = ""
    given: ClassVar[frozenset[str]] = frozenset()

    def __init_subclass__(cls, group: str = "") -> None:
        cls.group = group

    def __post_init__(self) -> None:
        for each in fields(self):
            value = getattr(self, each.name)
            if "kind" not in each.metadata:
                if isinstance(each.type, type) and issubclass(each.type, Settings) and not isinstance(value, each.type):
                    raise UserError(f"{each.name} is {truncate(value)}", remedy=f"give {each.type.__name__}(…)")
                continue
            kind = kind_of(each)
            try:
                setattr(self, each.name, kind.check(current_value(qualified_name(type(self), each), value)))
            except (ValueError, TypeError, OverflowError):
                raise invalid_value_error(qualified_name(type(self), each), value, kind) from None

    def as_given(self: Own, names: Iterable[str]) -> Own:
        """Remember the names of the settings that the user gave; return these settings."""
        vars(self)["given"] = frozenset(names)  # no field, which would be a setting
        return self

    def refuse(self, names: Iterable[str], why: str, remedy: str = "") -> None:
        """Raise ``UserError`` if the user gave one of these settings, which has no effect."""
        refuse([self.flag(name) for name in names if name in self.given], why, remedy)

    @classmethod
    def flag(cls, name: str) -> str:
        """Return the flag of a setting, given its dotted name."""
        own = next((each.metadata["flag"] for each in settings_of(cls) if each.name == name), "")
        return own or f"--{name}".replace("_", "-")


def refuse(flags: Sequence[str], why: str, remedy: str = "", *, on: str = "") -> None:
    """Raise ``UserError`` if there are flags that have no effect.

    Args:
        on: end of the sentence, such as the files on which the flags have no effect.
    """
    if flags:
        has, them = ("has", "it") if len(flags) == 1 else ("have", "them")
        raise UserError(f"{' and '.join(flags)} {has} no effect{on}", why, remedy or f"leave {them} out")


def settings_of(group: type[Settings]) -> list["Field[Any]"]:
    """List the settings of a group, without groups within."""
    return [each for each in fields(group) if "kind" in each.metadata]


def qualified_name(group: type[Settings], setting: "Field[Any]") -> str:
    """Return the full name of a setting, as in files."""
    return f"{group.group}.{setting.name}" if group.group else setting.name


def invalid_value_error(name: str, value: object, kind: ValueType) -> UserError:
    """Return the error for a value that is not of a kind."""
    return UserError(f"{name} is {truncate(value)}", remedy=f"give {kind}")


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return the question whether the most similar known name was meant; empty if none is similar.

    The last parts of dotted names are compared: their common group alone does not count.
    """
    names = {_last_part(name): name for name in sorted(known, key=len, reverse=True)}
    found = difflib.get_close_matches(_last_part(word[:100]), names, 1, 0.7)
    return f"did you mean {names[found[0]]}?" if found else ""


def _last_part(name: str) -> str:
    return name.lstrip("-").rpartition(".")[2]


def truncate(value: object) -> str:
    """Shorten a value for a message; blank text appears in quotes."""
    text = value if isinstance(value, str) and value.strip() else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}…"
