"""Parser of the commands, and the flags that they share."""

from __future__ import annotations

import argparse
import codecs
import copy
import json
import os
import re
import shutil
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from crepe_dist import extras, invocation
from crepe_dist.errors import UserError
from crepe_dist.files import read_names
from crepe_dist.settings.fields import (
    DEVICES,
    HEADERS,
    LONGEST_DOCUMENT,
    MODES,
    Kind,
    Settings,
    Words,
    dotted,
    kind_of,
    near,
    real,
    settings_of,
    shortened,
    whole,
    wrong,
)
from crepe_dist.version import __version__

FEATURE_LEN = whole(1, LONGEST_DOCUMENT)


class Parser(argparse.ArgumentParser):
    """Argument parser that raises ``UserError``, allows no abbreviated flags, and rejects empty names.

    A flag with ``type=str`` takes any text, which may be empty. Without a type, or with ``Path``, it takes a name.

    Attributes:
        common: flags that ``--help`` shows, with their help shortened to its first sentence; ``--help-all`` shows the
            others too. Empty: ``--help`` shows all.
    """

    def __init__(self, **settings: Any) -> None:
        # No abbreviations: a new flag must not change the meaning of an old command.
        super().__init__(**settings, allow_abbrev=False, exit_on_error=False)
        self.common: tuple[str, ...] = ()
        self._given: list[str] = []
        self.register("type", None, _name)
        self.register("type", Path, lambda text: Path(_name(text)))

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        values, rest = self.parse_known_args(args, namespace)
        if rest:
            raise self.unknown(rest[0])
        return values

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        self._given = [argument.partition("=")[0] for argument in (sys.argv[1:] if args is None else args)]
        try:
            return super().parse_known_args(args, namespace)
        except argparse.ArgumentError as error:
            action = next((action for action in self._actions if _title(action) == error.argument_name), None)
            name = self._typed(action) if action else error.argument_name or "the command line"
            raise UserError(f"{name} cannot be used", error.message, self.hint()) from None

    def unknown(self, argument: str) -> UserError:
        """Describe an argument that no flag takes."""
        return UserError(
            f"there is no option {argument}" if argument.startswith("-") else f"unexpected argument {argument}",
            remedy=near(argument.partition("=")[0], self.flags()) or self.hint(),
        )

    def error(self, message: str) -> NoReturn:
        # The argument that argparse misses may be misspelt.
        unknown = (flag for flag in self._given if flag.startswith("-") and flag not in self.flags())
        similar = (near(flag, self.flags()) for flag in unknown)
        raise UserError(message, remedy=next(filter(None, similar), self.hint()))

    def show_common(self, usage: str, *flags: str) -> None:
        """Let ``--help`` show a few flags only."""
        self.usage, self.common = f"%(prog)s {usage} [options]", flags
        self.add_argument("--help-all", action=_HelpAll, nargs=0, help="show all options and exit")

    def format_help(self) -> str:
        if not self.common:
            return super().format_help()
        formatter = self._get_formatter()
        formatter.add_usage(self.usage, self._actions, self._mutually_exclusive_groups)
        formatter.add_text(self.description)
        formatter.start_section("common options")
        positional = [action for action in self._actions if not action.option_strings]
        named = [action for flag in self.common for action in self._actions if flag in action.option_strings]
        formatter.add_arguments([_brief(action) for action in (*positional, *named)])
        formatter.end_section()
        formatter.add_text(f"{invocation.front()}{self.prog} --help-all shows all options.")
        formatter.add_text(self.epilog)
        return formatter.format_help()

    def flags(self) -> list[str]:
        return [flag for action in self._actions for flag in action.option_strings]

    def hint(self) -> str:
        return f"{invocation.front()}{self.prog} --help{'-all' if self.common else ''} lists the options"

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            choices = [str(choice) for choice in action.choices]
            remedy = near(value, choices) or f"give one of {', '.join(choices)}"
            raise UserError(f"{self._typed(action)} is {shortened(value)}", remedy=remedy)

    def _get_value(self, action: argparse.Action, arg_string: str) -> Any:
        if not isinstance(action.type, Kind):
            return super()._get_value(action, arg_string)
        try:
            return action.type(arg_string)
        except (ValueError, TypeError, OverflowError):
            raise wrong(self._typed(action), arg_string, action.type) from None

    def _typed(self, action: argparse.Action) -> str:
        """Return the form of a flag that the user typed."""
        return next((flag for flag in action.option_strings if flag in self._given), _title(action))


class _HelpAll(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        print(argparse.ArgumentParser.format_help(parser), end="")
        parser.exit()


def _brief(action: argparse.Action) -> argparse.Action:
    """Shorten a flag's help to its first sentence and its default."""
    brief = copy.copy(action)
    first, _, rest = (action.help or "").removesuffix(".").partition(". ")
    default = rest.rpartition("default: ")[2].rstrip(")") if "default: " in rest else ""
    if default == "null" and (meaning := re.search(r"\bnull: ([^.;(]+)", rest)):
        default = meaning[1].strip()
    brief.help = f"{first}; default: {default}" if default else first
    return brief


def _title(action: argparse.Action) -> str:
    return "/".join(action.option_strings) or str(action.metavar or action.dest)


def _name(text: str) -> str:
    if not text.strip():
        raise argparse.ArgumentTypeError("the name is empty")
    return text


def parser(command: str, description: str, examples: str) -> Parser:
    """Build the parser of a command, with its help's description and examples."""
    prog = invocation.program(command)
    spelled = rf"{invocation.front()}\1{prog.removesuffix(command)}"
    result = Parser(
        prog=prog,
        description=textwrap.fill(description, shutil.get_terminal_size().columns - 2),
        epilog="examples:\n" + re.sub(r"(horovodrun -np \d+ )?python -m crepe_dist\.", spelled, examples),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_version(result)
    return result


def add_version(flags: argparse.ArgumentParser) -> None:
    flags.add_argument("--version", action="version", version=f"crepe_dist {__version__}")


def add_device(arguments: argparse.ArgumentParser) -> None:
    arguments.add_argument(
        "--device", choices=DEVICES, default="auto", help="device; auto: a GPU if there is one; default: auto"
    )


def add_checkpoint(arguments: argparse.ArgumentParser) -> None:
    arguments.add_argument(
        "checkpoint",
        nargs="?",
        help=".params file, run folder or the start of its name, exported folder or its URL; default: the model that "
        "`use` chose, or the only run in runs/",
    )


def add_min_probability(arguments: argparse._ActionsContainer, where: str = "") -> None:
    arguments.add_argument(
        "--min-probability",
        type=real(0, 1, "auto"),
        default=0.0,
        metavar="P",
        help=f'answer "none of these"{where} if no class is as probable as this; auto: the threshold that 95 %% of the '
        "validation texts reach; default: 0",
    )


def add_model_folder(arguments: argparse.ArgumentParser) -> None:
    arguments.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="folder; files of the same names are replaced"
    )


def add_foreign(arguments: argparse.ArgumentParser) -> None:
    group = arguments.add_argument_group("parameters of another program, without a .json file beside them")
    group.add_argument("--mode", choices=MODES, help="encoding of the texts in training")
    group.add_argument("--feature-len", type=FEATURE_LEN, metavar="L", help="characters per document; default: 1014")
    add_fold_accents(group)
    group.add_argument(
        "--classes", metavar="NAMES", help="a,b,c in the order of training, or a file with one name per line"
    )


def foreign(args: argparse.Namespace) -> dict[str, Any]:
    """Map the flags of ``add_foreign`` to the keyword arguments of ``load`` and ``Foreign``."""
    return {
        "mode": args.mode,
        "feature_len": args.feature_len,
        "fold_accents": args.fold_accents,
        "classes": _class_names(args.classes),
    }


def add_fold_accents(arguments: argparse._ActionsContainer, off: str = "in mode notebook") -> None:
    arguments.add_argument(
        "--fold-accents", type=_truth, metavar="on|off", help=f"read é as e, and ß as ss; default: off {off}, else on"
    )


def add_header(arguments: argparse._ActionsContainer) -> None:
    arguments.add_argument("--header", choices=HEADERS, default="auto", help="whether the first line names the columns")


def add_encoding(arguments: argparse._ActionsContainer) -> None:
    arguments.add_argument(
        "--encoding",
        type=_encoding,
        default="utf-8",
        help="encoding of text files, such as cp1252; default: utf-8, or that of a byte order mark",
    )


def _encoding(name: str) -> str:
    try:
        "a".encode(name)  # not a codec of bytes
        return codecs.lookup(name).name
    except (LookupError, ValueError):
        raise argparse.ArgumentTypeError(f"{name!r:.40} is not an encoding of text, such as cp1252") from None


def _truth(text: str) -> bool:
    if text not in ("on", "off"):
        raise argparse.ArgumentTypeError(f"{text!r} is not on or off")
    return text == "on"


def _class_names(value: str | None) -> tuple[str, ...] | None:
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


def check_output(path: Path | None, flag: str, source: str | None = None) -> None:
    """Check that a file can be written, before the work whose result it will hold, and does not replace its source."""
    if path is None:
        return
    why = ""
    try:
        target = Path(os.path.realpath(path))  # follow links as writing does
        if target.is_dir() or target.is_symlink():  # a circle of links
            why = "it is not a file"
        elif source is not None and target == Path(os.path.realpath(source)):
            why = "it is the file that is read"
        elif not target.parent.is_dir() or not os.access(target if target.exists() else target.parent, os.W_OK):
            why = "its folder does not exist, or writing there is not permitted"
    except OSError as error:
        why = error.strerror or str(error)
    if why:
        raise UserError(f"{flag}: {path} cannot be written: {why}", remedy=f"choose another {flag}")


def check_page(path: Path | None, source: str | None = None) -> None:
    """Check that the page of ``--html`` can be written, before the work that it shows."""
    if path is not None:
        extras.require("reports", "--html")
    check_output(path, "--html", source)


def add_settings(
    flags: argparse._ActionsContainer, group: type[Settings], flag: Callable[[str], str], **default: Any
) -> None:
    """Add the flags of a group's settings.

    Args:
        flag: function that returns the flag of a setting, given its dotted name.
        default: ``default=argparse.SUPPRESS`` for a namespace of the flags that were given, by their dotted names.
    """
    for each in settings_of(group):
        kind, name = kind_of(each), dotted(group, each)
        words = kind.words if isinstance(kind, Words) else None
        usual = each.default if isinstance(each.default, str) else json.dumps(each.default)
        flags.add_argument(
            flag(name),
            dest=name,
            type=str if words else kind,
            nargs="?" if each.type is bool else None,
            const=True if each.type is bool else None,
            choices=words,
            metavar=None if words else kind.metavar or each.name.upper(),
            help=f"{each.metadata['help']} ({'' if words else f'{kind}; '}default: {usual})".replace("%", "%%"),
            **{"default": each.default, **default},
        )
