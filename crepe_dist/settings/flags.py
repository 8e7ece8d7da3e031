"""Parser of the commands, whose flags are made from dataclasses, and the flags that several commands share."""

import argparse
import codecs
import json
import os
import re
import shutil
import sys
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Callable, ClassVar, NoReturn, Optional

from crepe_dist import extras, invocation
from crepe_dist.errors import UserError
from crepe_dist.files import read_names, unwritable
from crepe_dist.settings.aliases import FLAGS, Alias, current_name, current_value
from crepe_dist.settings.fields import (
    COLUMN,
    DEVICES,
    FORMATS,
    HEADERS,
    MAX_DOCUMENT_LENGTH,
    MODES,
    NON_EMPTY,
    Choice,
    Range,
    Repeated,
    Settings,
    ValueType,
    did_you_mean,
    float_range,
    int_range,
    invalid_value_error,
    kind_of,
    qualified_name,
    setting,
    settings_of,
)
from crepe_dist.version import __version__

COMMAND = re.compile(r"(horovodrun -np \d+ )?(?<!\S)crepe (?=[a-z])")  # in examples


class Parser(argparse.ArgumentParser):
    """Argument parser that raises ``UserError`` and allows no abbreviated flags.

    Attributes:
        aliases: old names of flags, which the help does not show.
    """

    def __init__(self, **settings: Any) -> None:
        # No abbreviations: a new flag must not change the meaning of an old command.
        super().__init__(**settings, allow_abbrev=False, exit_on_error=False)
        self.aliases: Mapping[str, Alias] = FLAGS
        self.add_argument("--version", action="version", version=f"crepe_dist {__version__}")

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        values, rest = self.parse_known_args(args, namespace)
        if rest:
            raise self.unknown(rest[0])
        return values

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        words = [self._current(word) for word in (sys.argv[1:] if args is None else args)]
        try:
            return super().parse_known_args(words, namespace)
        except argparse.ArgumentError as error:
            raise UserError(
                f"{error.argument_name or 'the command line'}: {error.message}", remedy=self.hint()
            ) from None

    def _current(self, word: str) -> str:
        """Return a word of the command line with today's name of the flag, if it is one."""
        flag, sign, value = str(word).partition("=")
        return current_name(flag, self.aliases, self._option_string_actions) + sign + value

    def unknown(self, argument: str) -> UserError:
        """Describe an argument that no flag takes."""
        return UserError(
            f"there is no option {argument}" if argument.startswith("-") else f"unexpected argument {argument}",
            remedy=did_you_mean(argument.partition("=")[0], self.flags()) or self.hint(),
        )

    def error(self, message: str) -> NoReturn:
        raise UserError(message, remedy=self.hint())

    def flags(self) -> list[str]:
        return [flag for action in self._actions for flag in action.option_strings]

    def hint(self) -> str:
        return f"{invocation.uv_prefix()}{self.prog} --help lists the options"

    def _get_value(self, action: argparse.Action, arg_string: str) -> Any:
        if not isinstance(action.type, ValueType):
            return super()._get_value(action, arg_string)
        try:
            return action.type(current_value(action.dest, arg_string))
        except (ValueError, TypeError, OverflowError):
            name = argparse._get_action_name(action)  # noqa: SLF001
            raise invalid_value_error(name or action.dest, arg_string, action.type) from None


def command_parser(name: str, description: str, examples: str) -> Parser:
    """Build a parser without flags for a command."""
    prog = invocation.program_name(name)
    spelled = rf"{invocation.uv_prefix()}\1{prog.removesuffix(name)}"
    return Parser(
        prog=prog,
        description=textwrap.fill(" ".join(description.split()), shutil.get_terminal_size().columns - 2),
        epilog="examples:\n" + COMMAND.sub(spelled, re.sub(r"(?m)^ {6}", "", examples).strip("\n")),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def add_settings(
    flags: argparse._ActionsContainer, group: type[Settings], flag: Optional[Callable[[str], str]] = None
) -> None:
    """Add the flags of a group's settings. The namespace has only those that were given.

    Args:
        flag: function that returns the flag of a setting, given its dotted name. With it, the namespace has dotted
            names, and a flag that is true or false takes a value.
    """
    for each in settings_of(group):
        kind, name, positional = kind_of(each), qualified_name(group, each), each.metadata["positional"] is not None
        usual = each.default if isinstance(each.default, str) else json.dumps(each.default, default=str)
        notes = [str(kind)] * (not isinstance(kind, Choice) and (flag is not None or isinstance(kind, Range)))
        notes += [f"default: {usual}"] * (flag is not None or each.default not in (None, False, (), ""))
        options: dict[str, Any] = {
            "type": kind,
            "metavar": name.upper() if positional else kind.metavar or each.name.upper(),
        }
        if each.type in (bool, Optional[bool]):
            options = {**options, "nargs": "?", "const": True} if flag else {"action": "store_true"}
        elif isinstance(kind, Repeated):
            options = {**options, "type": kind.of, "action": "append"}
        if positional:
            names, options = [name], {**options, "nargs": each.metadata["positional"] or None}
            options.pop("action", None)
        else:
            names, options["dest"] = (
                [flag(name) if flag else group.flag(name), *each.metadata["also"]],
                name,
            )
        options["default"] = argparse.SUPPRESS
        help = each.metadata["help"] + f" ({'; '.join(notes)})" * bool(notes)
        flags.add_argument(*names, help=help.replace("%", "%%"), **options)


@dataclass
class Command(Settings):
    """Base of the commands, whose docstrings describe them in the help; `crepe NAME` runs the class `Name`."""

    usage: ClassVar[str]
    interrupted: ClassVar[str] = "interrupted"

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        _, _, name = getattr(getattr(sys.modules["__main__"], "__spec__", None), "name", "").rpartition("crepe_dist.")
        if cls.__module__ == "__main__" and name:  # python -m crepe_dist.NAME, a second copy of the module
            sys.argv.insert(1, name)
            import_module("crepe_dist.__main__").start()

    @classmethod
    def parser(cls) -> Parser:
        """Build the parser of the command."""
        result = command_parser(cls.__name__.lower(), cls.__doc__ or "", cls.usage)
        add_settings(result, cls)
        return result

    @classmethod
    def parsed(cls, words: Any = None) -> Any:
        """Parse the words after the command's name."""
        parser = cls.parser()
        values, rest = parser.parse_known_intermixed_args(words)
        if rest:
            raise parser.unknown(rest[0])
        return cls(**vars(values)).as_given(vars(values))

    def run(self) -> None:
        """Do what the command is for."""
        raise NotImplementedError


class TextEncoding(ValueType):
    """Encoding of text files."""

    def check(self, value: Any) -> str:
        try:
            "a".encode(value)  # not a codec of bytes
            return codecs.lookup(value).name
        except LookupError:
            raise ValueError from None

    def __str__(self) -> str:
        return "an encoding of text, such as cp1252"


HEADER = "whether the first line names the columns"
UTF_8 = "utf-8"
ENCODING = (
    "encoding of text files without a byte order mark, such as cp1252; default: the encoding of the model's data, else "
    "utf-8; JSON Lines: utf-8"
)


@dataclass
class ThresholdFlag(Settings):
    """Flag of commands that may answer that a text has none of the classes."""

    min_probability: Any = setting(
        0.0,
        'answer "none of these" if no class is as probable as this; auto: the threshold that 95 % of the validation '
        "texts reach",
        float_range(0, 1, "auto"),
    )
    min_precision: Optional[float] = setting(
        None,
        'answer "none of these" where fewer such answers to validation texts are right, with a confidence of 95 %',
        float_range(0, 1),
    )

    def thresholds(self) -> dict[str, Any]:
        """Return the arguments of ``load`` that these flags give."""
        return {"min_probability": self.min_probability, "min_precision": self.min_precision}


@dataclass
class ColumnFlags(Settings):
    """Format and columns of labelled files."""

    input_format: Optional[str] = setting(None, "file format; default: detected from name and content", Choice(FORMATS))
    header: str = setting("auto", HEADER, Choice(HEADERS))
    encoding: Optional[str] = setting(None, ENCODING, TextEncoding())
    label: Optional[str] = setting(
        None,
        "column of the label, by name or number from 1; default: that of the model's data, else one with a usual name, "
        "else the first",
        COLUMN,
        "--label-column",
    )
    label_columns: Optional[str] = setting(
        None,
        "columns A,B,… of the classes, in place of one of labels: 0 or 1, or shares with --labels soft; or of the "
        "levels of one class, with --levels",
        NON_EMPTY,
    )
    text: tuple[str, ...] = setting(
        (),
        "column of the text; repeat it to join several in this order; default: those of the model's data, else one "
        "with a usual name, else all but the label",
        Repeated(COLUMN),
        flag="--text-column",
    )


@dataclass
class ModelFlags(Settings):
    """Flags of commands that open a model, which may be of another program."""

    checkpoint: Optional[str] = setting(
        None,
        ".params file, run folder or the start of its name, exported folder or its URL; default: the model that `use` "
        "chose, else the newest run in runs/, if all are of the same data",
        NON_EMPTY,
        positional="?",
    )
    mode: Optional[str] = setting(
        None, "encoding of the texts in training, of parameters of another program", Choice(MODES)
    )
    feature_len: Optional[int] = setting(
        None, "characters per document of such parameters; default: 1014", int_range(1, MAX_DOCUMENT_LENGTH)
    )
    classes: Optional[str] = setting(
        None, "classes of such parameters: a,b,c in the order of training, or a file with one name per line", NON_EMPTY
    )

    def external_weights_kwargs(self) -> dict[str, Any]:
        """Return the keyword arguments of ``load`` about them."""
        return {
            "mode": self.mode,
            "feature_len": self.feature_len,
            "classes": _class_names(self.classes),
        }


@dataclass
class DeviceFlag(Settings):
    """Flag of commands that can compute on a GPU."""

    device: str = setting("auto", "device; auto: a GPU if there is one", Choice(DEVICES))


def _class_names(value: Optional[str]) -> Optional[tuple[str, ...]]:
    """Return the names given by ``--classes``: the lines of a file, or a list with commas."""
    if value is None:
        return None
    path = Path(value)
    if path.is_file():
        return tuple(read_names(path))
    if "," not in value:
        raise UserError(f"--classes {value}: neither a file nor a list", remedy="give a file, or names such as a,b,c")
    names = tuple(name.strip() for name in value.split(","))
    if "" in names or len(set(names)) < len(names):
        raise UserError(f"--classes {value}: a name is empty or given twice", remedy="give each class its own name")
    return names


def check_folder(path: Path) -> None:
    """Check that the value of ``--out`` is a folder, or can become one."""
    if path.exists() and not path.is_dir():
        raise UserError(f"--out: {path} is not a folder", remedy="choose another --out")


def check_output(path: Optional[Path], flag: str, source: Optional[str] = None) -> None:
    """Check that a file can be written, before the work whose result it will hold, and does not replace its source."""
    if path is None:
        return
    try:
        why = unwritable(path)
        if not why and source is not None and os.path.realpath(path) == os.path.realpath(source):
            why = "it is the file that is read"
    except OSError as error:
        why = error.strerror or str(error)
    if why:
        raise UserError(f"{flag}: {path} cannot be written: {why}", remedy=f"choose another {flag}")


def check_page(path: Optional[Path], source: Optional[str]) -> None:
    """Check that the page of ``--html`` can be written, before the work that it shows."""
    if path is not None:
        extras.require("reports", "--html")
    check_output(path, "--html", source)
