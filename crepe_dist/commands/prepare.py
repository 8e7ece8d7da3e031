"""Prepare a data set."""

import re
import shlex
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Optional, Union

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, TaskID, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from crepe_dist import invocation
from crepe_dist.data.dataset import UNLABELLED, open_dataset
from crepe_dist.data.verification import verify
from crepe_dist.errors import UserError, escape_controls
from crepe_dist.files.folders import temporary_folder
from crepe_dist.files.safe_read import printable
from crepe_dist.preparing.dataframe_source import find_label_type, is_table, write_table
from crepe_dist.preparing.flags import PreparationFlags
from crepe_dist.preparing.formats.columns import ColumnSpec
from crepe_dist.preparing.worker_pool import ProgressCallback, print_nothing
from crepe_dist.reports import data_page
from crepe_dist.settings.fields import PATH_ARGUMENT, did_you_mean, setting, settings_of

if TYPE_CHECKING:
    import pandas as pd

    Table = Union[pd.DataFrame, Mapping[str, Any]]

# Flags --rename OLD=NEW, as words of a shell.
RENAME_FLAGS = re.compile(r"""(--rename (?=\S*=|'[^']*=)([^\s'",;]|[,;](?!\s)|'[^']*'|"[^"]*")+ ?)+""")
COMMAND_ONLY = {"verify"}  # no arguments of the function


def prepare(
    source: "Union[Table, str, Path, Sequence[Union[str, Path]]]",
    out: Union[str, Path],
    *,
    text: Union[str, Sequence[str], None] = None,
    label: Optional[str] = None,
    weight: Optional[str] = None,
    label_columns: Sequence[str] = (),
    id: Optional[str] = None,
    test: "Union[Table, str, Path, float, None]" = None,
    validation: "Union[Table, str, Path, float, None]" = None,
    unlabelled: "Union[Table, str, Path, Sequence[Union[str, Path]], None]" = None,
    verbose: bool = True,
    **options: Any,
) -> dict[str, Any]:
    """Prepare a table in memory, or files, as a data set folder; also called ``crepe_dist.prepare``.

    Rows are checked as those of files are: unusable ones, such as those with None or NaN as their text, go to
    ``quarantine.jsonl`` with their number, from 1, and the reason.

    Args:
        source: data frame, mapping of names to lists such as ``{"text": texts, "label": labels}``, or the names of
            files and folders.
        out: folder to create.
        text, label: columns; ``None``: those with usual names. Several columns of ``text`` are joined in their order.
        weight: column of the weights of training rows; ``None``: all count alike.
        label_columns: columns of the classes, in place of ``label``: 0 or 1, or shares with ``labels="soft"``.
        id: column of the ids, by which rows can be found again; ``None``: none.
        test, validation: table or file of this split, or its share of the rows of ``source``; ``None``: 0.2, and 0.1
            of at least 2,000 rows.
        unlabelled: table or files of texts without labels for training; ``None``: none.
        verbose: print to standard error which columns are read.
        options: further flags of the command ``prepare``, such as ``max_bad=0.05`` or ``overwrite=True``. With
            ``labels="multilabel"``, labels may be lists.

    Returns:
        The numbers of the report, as in ``report.json``.

    Raises:
        UserError: the columns or their lengths do not fit, too many rows are unusable, or ``out`` exists.
    """
    with temporary_folder() as folder:
        texts = () if text is None else (text,) if isinstance(text, str) else tuple(text)
        beside = {name: _to_names(options.pop(name, ())) for name in ("category", "number")}
        wanted = ColumnSpec(
            label, texts, weight, tuple(label_columns), id, categories=beside["category"], numbers=beside["number"]
        )

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
                like = replace(wanted, label=None, texts=(), weight=None, labels=(), id_required=False)
                like = replace(like, preferred_texts=wanted.texts)
                write_table(given, path, like, labelled=False)
                return path
            read = write_table(given, path, wanted if name == "table" else replace(wanted, weight=None))
            wanted = read if name == "table" else wanted
            return path

        try:
            sources = file(source, "table")
            options |= {"test": file(test, "test"), "validation": file(validation, "validation")}
            more = file(unlabelled, UNLABELLED)
            options[UNLABELLED] = () if more is None else _to_names(more)
            columns = {"label": wanted.label, "weight": wanted.weight, "id": wanted.id}
            options |= {name: None if each is None else str(each) for name, each in columns.items()}
            options |= {"category": wanted.categories, "number": wanted.numbers}
            options |= {"text": _to_names(wanted.texts), "label_columns": ",".join(map(str, wanted.labels)) or None}
            known = [each.name for each in settings_of(Prepare) if each.name not in COMMAND_ONLY]
            if unknown := options.keys() - set(known):
                name = unknown.pop()
                remedy = did_you_mean(name, known) or "docs/how-to/python.md lists them"
                raise UserError(f"prepare has no argument {name}", remedy=remedy)
            if is_table(source):
                options["label_type"] = find_label_type(source, wanted.label)
            flags = Prepare(source=_to_names(sources), out=Path(out), **options).as_given(options)
            command, say = f"crepe_dist.prepare(…, {str(out)!r})", _print_to_stderr if verbose else print_nothing
            return flags.prepare(data_page.optional_page(), command, print_line=say)
        except UserError as error:
            raise translate_for_python(error) from error.__cause__


def _print_to_stderr(line: str) -> None:
    """Print a line to standard error, where it disturbs no output of the caller."""
    print(escape_controls(line), file=sys.stderr)


def _to_names(given: Any) -> tuple[str, ...]:
    return tuple(map(str, given if isinstance(given, (list, tuple)) else [given]))


def translate_for_python(error: UserError) -> UserError:
    """Spell the flags in a message as arguments of ``prepare``.

    Messages come from checks that the command shares, and name its flags, which a caller in Python cannot paste.
    """
    for name in ("what", "why", "remedy"):
        text = re.sub(r"--(overwrite|strip-html|keep-unlabelled|stratified)\b(?!=)", r"--\1=True", getattr(error, name))
        text = RENAME_FLAGS.sub(lambda each: f"rename={shlex.split(each[0])[1::2]}{' ' * each[0].endswith(' ')}", text)
        text = re.sub(r"repeat the flag: ((?:--\S+ \S+ ?)+)", lambda each: f"give text={each[1].split()[1::2]}", text)
        text = re.sub(
            r"--(labels|header|dedupe|alphabet) (single|multilabel|soft|yes|no|exact|near|auto)\b", r'--\1="\2"', text
        )
        text = re.sub(r"--(text|label)-column\b", r"--\1", text)
        text = re.sub(
            r"--([a-z]+(?:-[a-z]+)*)(?:=| (?=[\dA-Z'\"]))?", lambda flag: f"{flag[1].replace('-', '_')}=", text
        )
        setattr(error, name, text)
    return error


@dataclass
class Prepare(PreparationFlags):
    """Encode texts as a data set folder for training.

    SOURCE is a file (CSV, TSV, JSON Lines, Parquet, plain or .gz), a folder of files named train*, test*, validation*,
    a folder with a subfolder for each class, a URL of such a file or folder, `-` for a pipe, or `sample`; several
    sources are joined.
    """

    usage = """
        crepe prepare sample --out data/sample
        crepe prepare reviews.csv.gz --out data/reviews --validation 0.1
        crepe prepare labelled.csv --unlabelled texts.txt --validation 0.1 --out data/tickets
        crepe prepare train.jsonl --test test.jsonl --text-column body --label topic --out data/topics
        crepe prepare ag_news_csv/ --out data/ag_news       (train.csv, test.csv, classes.txt)
        crepe prepare aclImdb/ --out data/imdb              (train/pos/*.txt, train/neg/*.txt, test/...)
        zcat logs-*.gz | crepe prepare - --input-format jsonl --out data/logs
        crepe prepare s3://bucket/reviews/ --out data/reviews   (also https://, gs://, hf://…)
        crepe prepare --verify data/reviews
        """

    verify: Optional[Path] = setting(None, "compare a prepared folder with its checksums", PATH_ARGUMENT)

    def run(self) -> None:
        if self.verify is not None:
            if self.source or self.out:
                raise UserError("--verify prepares nothing", remedy="leave SOURCE and --out out")
            self.refuse(sorted(self.given - {"verify"}), "--verify prepares nothing")
            verify(open_dataset(self.verify))
            print(f"{self.verify} is unchanged since it was prepared")
            return
        if not self.source:
            raise UserError(
                "there is nothing to prepare", remedy=f"{invocation.command_line('prepare')} --help shows examples"
            )
        if self.out is None:
            raise UserError("--out is missing: it names the folder to create", remedy="add --out data/NAME")
        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) != signal.SIG_IGN:  # stay immune if the shell asks for it: background jobs
                signal.signal(number, _interrupt)
        command = printable(f"{invocation.command_line('prepare')} {shlex.join(sys.argv[1:])}")
        try:
            with _show_progress_bar() as show:
                say = partial(print, flush=True)
                summary = self.prepare(
                    data_page.optional_page(), command, show, print_line=lambda line: say(escape_controls(line))
                )
        except KeyboardInterrupt:
            raise KeyboardInterrupt(f"stopped and cleaned up. To start again: {command}") from None
        data_page.show(summary, Console(), printable(self.out))


def _interrupt(*_: object) -> None:
    """Handle SIGTERM like Ctrl-C, and ignore further signals during the clean-up."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


@contextmanager
def _show_progress_bar() -> Iterator[ProgressCallback]:
    """Show a progress bar for each phase, if standard error is a terminal."""
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Bar(*columns, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bar:
        tasks: dict[str, TaskID] = {}

        def show(doing: str, done: int, total: int) -> None:
            if doing not in tasks:
                tasks[doing] = bar.add_task(escape(doing))
            bar.update(tasks[doing], completed=done, total=total or None)

        yield show
