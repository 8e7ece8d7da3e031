"""Flags that several commands share."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from crepe_dist import __version__
from crepe_dist.data.alphabet import MODES
from crepe_dist.data.formats.tables import HEADERS
from crepe_dist.data.sources import read_names
from crepe_dist.errors import UserError


def parser(
    command: str, description: str, examples: str, kind: type[argparse.ArgumentParser] = argparse.ArgumentParser
) -> argparse.ArgumentParser:
    result = kind(
        prog=f"python -m crepe_dist.{command}",
        description=description,
        epilog=f"examples:\n{examples}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    result.add_argument("--version", action="version", version=f"crepe_dist {__version__}")
    return result


def add_device(arguments: argparse.ArgumentParser) -> None:
    arguments.add_argument("--device", default="auto", help="auto (a GPU if there is one), gpu or cpu; default: auto")


def add_checkpoint(arguments: argparse.ArgumentParser) -> None:
    arguments.add_argument("checkpoint", nargs="?", help=".params file or run folder; default: the newest run in runs/")
    add_device(arguments)


def add_foreign(arguments: argparse.ArgumentParser) -> None:
    group = arguments.add_argument_group("parameters from elsewhere, without a .json beside them")
    group.add_argument("--mode", choices=MODES, help="encoding they were trained with")
    group.add_argument("--feature-len", type=int, metavar="L", help="characters a document; default: 1014")
    add_fold_accents(group)
    group.add_argument("--classes", metavar="NAMES", help="a,b,c in the order of training, or a file with one a line")


def add_fold_accents(arguments: argparse._ActionsContainer) -> None:
    arguments.add_argument(
        "--fold-accents", type=_truth, metavar="on|off", help="é → e; default: off in mode notebook, else on"
    )


def add_header(arguments: argparse._ActionsContainer) -> None:
    arguments.add_argument("--header", choices=HEADERS, default="auto", help="does the first line name the columns?")


def _truth(text: str) -> bool:
    if text not in ("on", "off"):
        raise argparse.ArgumentTypeError(f"{text!r} is neither on nor off")
    return text == "on"


def class_names(given: str | None) -> tuple[str, ...] | None:
    """The names of ``--classes``: a file's lines, or what stands between the commas."""
    if given is None:
        return None
    path = Path(given)
    if path.is_file():
        return tuple(read_names(path))
    if "," not in given:
        raise UserError(f"--classes {given}: no such file, and not a list", remedy="give a file, or names as a,b,c")
    return tuple(name.strip() for name in given.split(","))


def check_output(path: Path | None, flag: str) -> None:
    """Before work is done whose result is to be written there.

    Raises:
        UserError: the file cannot be written.
    """
    if path is None:
        return
    if path.is_dir():
        why = "it is a folder"
    elif not path.absolute().parent.is_dir():
        why = "there is no such folder"
    elif not os.access(path if path.exists() else path.absolute().parent, os.W_OK):
        why = "writing is not allowed there"
    else:
        return
    raise UserError(f"{path} cannot be written", why, f"choose another {flag}")
