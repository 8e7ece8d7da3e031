"""Prepare a data set: `python -m crepe_dist.prepare SOURCE... --out DIR`."""

from __future__ import annotations

import argparse
import re
import shlex
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Union

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, TaskID, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from crepe_dist import command, invocation
from crepe_dist.data.dataset import UNLABELLED, open_dataset
from crepe_dist.data.verification import verify
from crepe_dist.errors import UserError
from crepe_dist.files import printable
from crepe_dist.preparing.flags import parser
from crepe_dist.preparing.formats.columns import Wanted
from crepe_dist.preparing.frames import is_table, write_table
from crepe_dist.preparing.from_flags import prepare_from_flags
from crepe_dist.preparing.pool import Progress, Show
from crepe_dist.preparing.preparation import leftovers
from crepe_dist.reports import data_page
from crepe_dist.scratch import scratch

if TYPE_CHECKING:
    import pandas as pd

    Table = Union[pd.DataFrame, Mapping[str, Any]]

COMMAND_ONLY = ("verify",)  # no arguments of the function


def prepare(
    source: Table | str | Path | Sequence[str | Path],
    out: str | Path,
    *,
    text: str | Sequence[str] | None = None,
    label: str | None = None,
    title: str | None = None,
    weight: str | None = None,
    label_columns: Sequence[str] = (),
    id: str | None = None,
    test: Table | str | Path | float | None = None,
    validation: Table | str | Path | float | None = None,
    unlabelled: Table | str | Path | Sequence[str | Path] | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Prepare a table in memory, or files, as a data set folder; also called ``crepe_dist.prepare``.

    Rows are checked as those of files are: unusable ones, such as those with None or NaN as their text, go to
    ``quarantine.jsonl`` with their number, from 1, and the reason.

    Args:
        source: data frame, mapping of names to lists such as ``{"text": texts, "label": labels}``, or the names of
            files and folders.
        out: folder to create.
        text, label, title: columns; ``None``: those with usual names. Several columns of ``text`` are joined in their
            order.
        weight: column of the weights of training rows; ``None``: all count alike.
        label_columns: columns of the classes, in place of ``label``: 0 or 1, or shares with ``labels="soft"``.
        id: column of the ids, by which rows can be found again; ``None``: none.
        test, validation: table or file of this split, or its share of the rows of ``source``; ``None``: 0.2, and 0.1
            of at least 2,000 rows.
        unlabelled: table or files of texts without labels for training; ``None``: none.
        options: further flags of the command ``prepare``, such as ``max_bad=0.05`` or ``overwrite=True``. With
            ``labels="several"``, labels may be lists.

    Returns:
        The numbers of the report, as in ``report.json``.

    Raises:
        UserError: the columns or their lengths do not fit, too many rows are unusable, or ``out`` exists.
    """
    with scratch() as folder:
        texts = () if text is None else (text,) if isinstance(text, str) else tuple(text)
        wanted = Wanted(label, title, texts, weight, tuple(label_columns), id)

        def file(given: Any, name: str) -> Any:
            """Write a table to a file, and return its path; return the names of files as they are."""
            nonlocal wanted
            if not is_table(given):
                for each in given if isinstance(given, (list, tuple)) else (given,):
                    if not isinstance(each, (str, Path, float, int, type(None))):
                        raise UserError(
                            f"the {name} cannot be of type {type(each).__name__}",
                            "a table has a column of texts and one of labels",
                            'give a data frame, {"text": texts, "label": labels}, or the name of a file',
                        )
                return given
            path = folder / name
            if name == UNLABELLED:
                like = Wanted(id=id, needs_id=False, remembered=wanted.texts)
                write_table(given, path, like, labelled=False)
                return path
            read = write_table(given, path, wanted if name == "table" else replace(wanted, weight=None))
            wanted = read if name == "table" else wanted
            return path

        try:
            sources = file(source, "table")
            options |= {"test": file(test, "test"), "validation": file(validation, "validation")}
            options[UNLABELLED] = file(unlabelled, UNLABELLED)
            options |= {"label": wanted.label, "title": wanted.title, "text": wanted.texts, "weight": wanted.weight}
            options["id"] = wanted.id
            options["label_columns"] = ",".join(wanted.labels) or None
            names = map(str, sources if isinstance(sources, (list, tuple)) else [sources])
            given = parser().parse_args([*_flags(options), f"--out={out}", "--", *names])
            return prepare_from_flags(given, data_page.optional_page(), f"crepe_dist.prepare(…, {str(out)!r})")
        except UserError as error:
            raise for_python(error) from error.__cause__


def _flags(options: Mapping[str, Any]) -> Iterator[str]:
    for name, value in options.items():
        if name in COMMAND_ONLY:
            raise UserError(f"prepare has no argument {name}", remedy="give its flag to the command `prepare`")
        flag = f"--{name.replace('_', '-')}"
        for argument in value if isinstance(value, (list, tuple)) else (value,):
            if argument is not None and argument is not False:
                yield flag if argument is True else f"{flag}={argument}"


def for_python(error: UserError) -> UserError:
    """Spell the flags in a message as arguments of ``prepare``.

    Messages come from checks that the command shares, and name its flags, which a caller in Python cannot paste.
    """
    for name in ("what", "why", "remedy"):
        text = re.sub(r"--overwrite\b(?!=)", "overwrite=True", getattr(error, name))
        text = re.sub(r"repeat the flag: ((?:--\S+ \S+ ?)+)", lambda each: f"give text={each[1].split()[1::2]}", text)
        text = re.sub(r"--labels (one|several|soft)\b", r'labels="\1"', text)
        text = re.sub(r"--(text|title|label|weight)-column\b", r"--\1", text)
        text = re.sub(
            r"--([a-z]+(?:-[a-z]+)*)(?:=| (?=[\dA-Z'\"]))?", lambda flag: f"{flag[1].replace('-', '_')}=", text
        )
        setattr(error, name, text)
    return error


def main() -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) != signal.SIG_IGN:  # stay immune if the shell asks for it, as for background jobs
            signal.signal(number, _stop)
    args = parser().parse_args()
    try:
        _run(args)
    except OSError as error:
        name = error.filename if isinstance(error.filename, str) else "a file"
        raise UserError(
            f"{name} cannot be used", error.strerror or str(error), "solve that, or choose another"
        ) from error


def _stop(*_: object) -> None:
    """Handle SIGTERM like Ctrl-C, and ignore further signals during the clean-up."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


def _run(args: argparse.Namespace) -> None:
    if args.verify is not None:
        if args.source or args.out:
            raise UserError("--verify prepares nothing", remedy="leave SOURCE and --out out")
        verify(open_dataset(args.verify))
        print(f"{args.verify} is unchanged since it was prepared")
        return
    if not args.source:
        raise UserError("there is nothing to prepare", remedy=f"{invocation.typed('prepare')} --help shows examples")
    if args.out is None:
        raise UserError("--out is missing", "it names the folder to create", "add --out data/NAME")
    _prepare_and_show(args)


def _command_line() -> str:
    return printable(f"{invocation.typed('prepare')} {shlex.join(sys.argv[1:])}")


def _prepare_and_show(args: argparse.Namespace) -> None:
    for left in leftovers(args.out):
        print(f"note: {printable(left)} is left of a killed preparation; delete it to free its space", file=sys.stderr)
    with _bar() as show:
        summary = prepare_from_flags(args, data_page.optional_page(), _command_line(), show)
    data_page.show(summary, Console(), printable(args.out))


@contextmanager
def _bar() -> Iterator[Show]:
    """Show a progress bar for each phase, if standard error is a terminal."""
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Bar(*columns, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bar:
        tasks: dict[str, TaskID] = {}

        def show(step: Progress) -> None:
            if step.doing not in tasks:
                tasks[step.doing] = bar.add_task(escape(step.doing))
            bar.update(tasks[step.doing], completed=step.done, total=step.total or None)

        yield show


class _Callable(ModuleType):
    """This module, which hides a function of its name: `crepe_dist.prepare(…)` calls it."""

    __call__ = staticmethod(prepare)


sys.modules[__name__].__class__ = _Callable

if __name__ == "__main__":
    command.run(main, interrupted=f"stopped and cleaned up. To start again: {_command_line()}")
