"""Command-line parser, base class of the commands, and groups of flags that several commands share.

The flags are generated from dataclass fields; see ``settings/fields.py``.
"""

import argparse
import codecs
import json
import os
import re
import shutil
import sys
import textwrap
from collections.abc import Callable, Collection
from dataclasses import Field, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar, NoReturn

from crepe_dist import invocation
from crepe_dist.errors import UserError
from crepe_dist.files.output_streams import find_write_problem
from crepe_dist.settings.fields import (
    COLUMN,
    DEVICES,
    FORMATS,
    NON_EMPTY,
    Choice,
    Range,
    Repeated,
    Settings,
    ValueType,
    Wrapped,
    did_you_mean,
    float_range,
    invalid_value_error,
    kind_of,
    qualified_name,
    setting,
    settings_of,
)
from crepe_dist.version import __version__

COMMAND = re.compile(r"(horovodrun -np \d+ )?(?<!\S)crepe (?=[a-z])")  # Start of a command line in the examples.


class Parser(argparse.ArgumentParser):
    """Argument parser that raises ``UserError`` for mistakes.

    Flags cannot be abbreviated. Otherwise, a new flag could change the meaning of an abbreviation in a user's script.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings, allow_abbrev=False, exit_on_error=False)
        self.add_argument("--version", action="version", version=f"crepe_dist {__version__}")

    def parse_intermixed_args(self, args: Any = None, namespace: Any = None) -> Any:
        values, rest = self.parse_known_intermixed_args(args, namespace)
        if rest:
            raise self.unknown(rest[0])
        return values

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        try:
            return super().parse_known_args(args, namespace)
        except argparse.ArgumentError as error:
            raise UserError(
                f"{error.argument_name or 'the command line'}: {error.message}", remedy=self.hint()
            ) from None

    def unknown(self, argument: str) -> UserError:
        """Return the error for an argument that no flag accepts."""
        flags = self.flags()
        if not argument.startswith("-") and {"--file", "--text"} <= set(flags):
            remedy = "pass a file with --file, and a single text with --text"
        else:
            remedy = did_you_mean(argument.partition("=")[0], flags) or self.hint()
        return UserError(
            f"there is no option {argument}" if argument.startswith("-") else f"unexpected argument {argument}",
            remedy=remedy,
        )

    def error(self, message: str) -> NoReturn:
        raise UserError(message, remedy=self.hint())

    def flags(self) -> list[str]:
        return list(self._option_string_actions)

    def hint(self) -> str:
        return f"{invocation.uv_prefix()}{self.prog} --help lists the options"

    def _get_value(self, action: argparse.Action, arg_string: str) -> Any:
        if not isinstance(action.type, ValueType):
            return super()._get_value(action, arg_string)
        try:
            return action.type(arg_string)
        except (ValueError, TypeError, OverflowError):
            name = argparse._get_action_name(action)  # noqa: SLF001
            raise invalid_value_error(name or action.dest, arg_string, action.type) from None


def command_parser(name: str, description: str, examples: str) -> Parser:
    """Build the parser of a command. The caller adds the flags.

    Args:
        examples: Example command lines that start with ``crepe``. In the help, ``crepe`` is replaced with the program
            name that the user typed.
    """
    prog = invocation.program_name(name)
    typed_prefix = rf"{invocation.uv_prefix()}\1{prog.removesuffix(name)}"
    return Parser(
        prog=prog,
        description=textwrap.fill(" ".join(description.split()), shutil.get_terminal_size().columns - 2),
        epilog="examples:\n" + COMMAND.sub(typed_prefix, re.sub(r"(?m)^ {6}", "", examples).strip("\n")),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def add_settings(
    flags: argparse._ActionsContainer,
    group: type[Settings],
    flag: Callable[[str], str] | None = None,
    unlisted: Collection[str] = (),
) -> None:
    """Add a flag to a parser for each setting of a group.

    The namespace contains only flags that the user passes, under the names that ``qualified_name`` returns.

    Args:
        flag: Function that maps the dotted name of a setting, such as ``training.epochs``, to its flag. If it is given,
            boolean flags accept a value (``--report=false``). If it is ``None``, ``group.flag`` chooses the flags, and
            boolean flags accept no value.
        unlisted: Dotted names of settings whose flags are not in the help.
    """
    for option in settings_of(group):
        kind, name = kind_of(option), qualified_name(group, option)
        positional = option.metadata["positional"]
        arguments: dict[str, Any] = {
            "type": kind,
            "metavar": name.upper() if positional is not None else kind.metavar or option.name.upper(),
            "default": argparse.SUPPRESS,
            "help": argparse.SUPPRESS
            if name in unlisted
            else _describe(option, kind, has_default=flag is not None).replace("%", "%%"),
        }
        if option.type in (bool, bool | None):
            if flag:
                arguments |= {"nargs": "?", "const": True}
            else:
                arguments = {"action": "store_true", "default": argparse.SUPPRESS, "help": arguments["help"]}
        elif isinstance(kind, Repeated):
            arguments |= {"type": kind.of} if positional is not None else {"type": kind.of, "action": "append"}
        if positional is not None:
            flags.add_argument(name, nargs=positional or None, **arguments)
        else:
            spelling = flag(name) if flag else group.flag(name)
            flags.add_argument(spelling, *option.metadata["also"], dest=name, **arguments)


def _describe(option: "Field[Any]", kind: ValueType, *, has_default: bool) -> str:
    """Return the help text of a setting: its description, its limits if it is a number, and its default value.

    Args:
        has_default: Whether to show the default even if it is empty, false or null.
    """
    text, mark, default = option.metadata["help"].partition("Default: ")
    sentences = [text.rstrip().removesuffix(".") + "."]
    limits = kind.of if isinstance(kind, Wrapped) else kind
    if isinstance(limits, Range):
        sentences.append(f"A{str(limits)[1:]}.")
    value = option.default
    if mark:
        sentences.append(mark + default)
    elif "default: " not in text and (has_default or not (value is None or value is False or value in ((), ""))):
        sentences.append(f"Default: {value if isinstance(value, str) else json.dumps(value, default=str)}.")
    return " ".join(sentences)


@dataclass
class Command(Settings):
    """Base class of the commands. ``crepe NAME`` runs the class ``Name``, and the help shows the class's docstring.

    Attributes:
        usage: Example command lines for the help.
        interrupted: Message that is printed after Ctrl-C.
    """

    usage: ClassVar[str]
    interrupted: ClassVar[str] = "interrupted"

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        _, _, name = getattr(getattr(sys.modules["__main__"], "__spec__", None), "name", "").rpartition("crepe_dist.")
        # `python -m crepe_dist.NAME` runs the module as `__main__`. Start the command line, which imports the module
        # under its real name. Otherwise, there would be two copies of the module's classes.
        if cls.__module__ == "__main__" and name:
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
        """Parse the arguments after the name of the command, and return the command."""
        return cls(**vars(cls.parser().parse_intermixed_args(words)))

    def run(self) -> None:
        """Run the command."""
        raise NotImplementedError


class TextEncoding(ValueType):
    """Type of the name of a text encoding. The checked value is the name that Python uses for the encoding."""

    def check(self, value: Any) -> str:
        try:
            "a".encode(value)  # This raises LookupError for codecs of bytes, such as base64.
            return codecs.lookup(value).name
        except LookupError:
            raise ValueError from None

    def __str__(self) -> str:
        return "a text encoding, such as cp1252"


UTF_8 = "utf-8"
# Help texts of flags that several commands share.
ENCODING = (
    "Encoding of text files without a byte order mark, such as cp1252. Default: the encoding of the model's data, "
    "otherwise utf-8. JSON Lines are always utf-8."
)


@dataclass
class ThresholdFlag(Settings):
    """Flags of commands that may abstain from predicting a class (selective prediction)."""

    min_probability: Any = setting(
        0.0,
        'Minimum probability of a predicted class. If no class reaches this probability, the answer is "none of '
        'these". auto: the threshold that 95 % of the validation texts reach.',
        float_range(0, 1, "auto"),
    )
    min_precision: float | None = setting(
        None,
        "Required precision of the predictions. The threshold is the lowest threshold that gives the validation split "
        'this precision with 95 % confidence. For texts below the threshold, the answer is "none of these". '
        "Default: no requirement.",
        float_range(0, 1),
    )

    def thresholds(self) -> dict[str, Any]:
        """Return the keyword arguments of ``load`` that these flags set."""
        return {"min_probability": self.min_probability, "min_precision": self.min_precision}


@dataclass
class ColumnFlags(Settings):
    """Flags of commands that read labelled files: format and columns."""

    input_format: str | None = setting(
        None, "File format. Default: detected from the file name and the content.", Choice(FORMATS)
    )
    encoding: str | None = setting(None, ENCODING, TextEncoding())
    label: str | None = setting(
        None,
        "Label column, by name or by number (from 1). Default: the column of the model's data, otherwise a "
        "column with a common name, otherwise the first column.",
        COLUMN,
    )
    label_columns: str | None = setting(
        None,
        "Columns A,B,… to use instead of the label column. Each column stands for a class and contains 0 or 1, or "
        "probabilities if --labels is soft.",
        NON_EMPTY,
    )
    text: tuple[str, ...] = setting(
        (),
        "Text column. Repeat the flag to join columns in this order. Default: the columns of the model's data, "
        "otherwise a column with a common name, such as text or body, otherwise all columns except the label.",
        Repeated(COLUMN),
        flag="--text-column",
    )


@dataclass
class ModelFlags(Settings):
    """Flags of commands that open a model."""

    checkpoint: str | None = setting(
        None,
        "Model: a .params file, a run folder or the start of its name, an exported folder or its URL. Default: the "
        "newest finished run in runs/.",
        NON_EMPTY,
        positional="?",
    )


@dataclass
class DeviceFlag(Settings):
    """Flag of commands that can compute on a GPU."""

    device: str = setting("auto", "Device. auto: a GPU if there is one, otherwise the CPU.", Choice(DEVICES))


def check_folder(path: Path) -> None:
    """Raise ``UserError`` if the value of ``--out`` exists and is not a folder."""
    if path.exists() and not path.is_dir():
        raise UserError(f"--out: {path} is not a folder", remedy="choose another --out")


def check_output(path: Path | None, flag: str, source: str | None = None) -> None:
    """Raise ``UserError`` if an output file cannot be written or is the input file.

    Commands call this function before they start their work, so that they fail early.

    Args:
        flag: Flag that specifies the path, for the message.
        source: Path of the input file.
    """
    if path is None:
        return
    try:
        why = find_write_problem(path)
        if not why and source is not None and os.path.realpath(path) == os.path.realpath(source):
            why = "it is the input file"
    except OSError as error:
        why = error.strerror or str(error)
    if why:
        raise UserError(f"{flag}: {path} cannot be written: {why}", remedy=f"choose another {flag}")
