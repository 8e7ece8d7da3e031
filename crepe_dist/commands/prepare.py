"""Command ``prepare``, and the function ``crepe_dist.prepare``."""

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
from crepe_dist.files.safe_read import escape_path
from crepe_dist.preparing.dataframe_source import find_label_type, is_table, write_table
from crepe_dist.preparing.flags import PreparationFlags
from crepe_dist.preparing.formats.columns import ColumnSpec
from crepe_dist.preparing.worker_pool import ProgressCallback, print_nothing
from crepe_dist.reports import data_page
from crepe_dist.settings.fields import PATH_ARGUMENT, did_you_mean, setting, settings_of

if TYPE_CHECKING:
    import pandas as pd

    Table = Union[pd.DataFrame, Mapping[str, Any]]

# One or more flags --rename OLD=NEW in a message, quoted for a shell.
RENAME_FLAGS = re.compile(r"""(--rename (?=\S*=|'[^']*=)([^\s'",;]|[,;](?!\s)|'[^']*'|"[^"]*")+ ?)+""")
# Flags of the command that are not arguments of the function.
COMMAND_ONLY = {"verify"}


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
    """Prepare a table in memory, or files, as a data set folder. The public name is ``crepe_dist.prepare``.

    The rows of a table are checked like the rows of a file. Invalid rows, such as rows whose text is None or NaN, are
    written to ``quarantine.jsonl`` with their row number (starting at 1) and the reason.

    Args:
        source: Data frame; or mapping of column names to lists, such as ``{"text": texts, "label": labels}``; or names
            of files and folders.
        out: Folder to create.
        text: Column of the text, or multiple columns, which are joined in this order. ``None``: columns with common
            names.
        label: Column of the label. ``None``: a column with a common name.
        weight: Column with the weights of the training rows. ``None``: all rows have the same weight.
        label_columns: Columns of the classes, which replace ``label``. Their values are 0 or 1, or probabilities with
            ``labels="soft"``.
        id: Column with ids. Lists of mistakes and predictions show the ids. ``None``: rows have no id.
        test: Table or file of the test split, or its fraction of the rows of ``source``. ``None``: 0.2.
        validation: Table or file of the validation split, or its fraction of the rows of ``source``. ``None``: 0.1 if
            there are at least 2,000 rows, otherwise 0.
        unlabelled: Table or files of unlabelled texts for training. ``None``: no unlabelled texts.
        verbose: Print to standard error which columns are read.
        options: Further flags of the command ``prepare``, such as ``max_bad=0.05`` or ``overwrite=True``. With
            ``labels="multilabel"``, labels may be lists.

    Returns:
        The content of ``report.json``.

    Raises:
        UserError: A column does not exist, columns differ in length, too many rows are invalid, or ``out`` exists.
    """
    with temporary_folder() as folder:
        texts = () if text is None else (text,) if isinstance(text, str) else tuple(text)
        categories, numbers = (_to_names(options.pop(name, ())) for name in ("category", "number"))
        columns = ColumnSpec(label, texts, weight, tuple(label_columns), id, categories=categories, numbers=numbers)

        def to_file(data: Any, name: str) -> Any:
            """Write a table to a file, and return its path. Return any other value, such as a path, unchanged."""
            nonlocal columns
            if not is_table(data):
                for item in data if isinstance(data, (list, tuple)) else (data,):
                    if not isinstance(item, (str, Path, float, int, type(None))):
                        raise UserError(
                            f"the {name} cannot be of type {type(item).__name__}",
                            "a table has a column of texts and a column of labels",
                            'give a data frame, {"text": texts, "label": labels}, or the name of a file',
                        )
                return data
            path = folder / name
            if name == UNLABELLED:
                spec = replace(columns, label=None, texts=(), weight=None, labels=(), id_required=False)
                write_table(data, path, replace(spec, preferred_texts=columns.texts), labelled=False)
                return path
            written = write_table(data, path, columns if name == "table" else replace(columns, weight=None))
            # The other tables must have the columns of the first one.
            columns = written if name == "table" else columns
            return path

        try:
            sources = to_file(source, "table")
            options |= {"test": to_file(test, "test"), "validation": to_file(validation, "validation")}
            unlabelled_files = to_file(unlabelled, UNLABELLED)
            options[UNLABELLED] = () if unlabelled_files is None else _to_names(unlabelled_files)
            single = {"label": columns.label, "weight": columns.weight, "id": columns.id}
            options |= {name: None if column is None else str(column) for name, column in single.items()}
            options |= {"category": columns.categories, "number": columns.numbers}
            options |= {"text": _to_names(columns.texts), "label_columns": ",".join(map(str, columns.labels)) or None}
            known = [field.name for field in settings_of(Prepare) if field.name not in COMMAND_ONLY]
            if unknown := options.keys() - set(known):
                name = unknown.pop()
                remedy = did_you_mean(name, known) or "docs/how-to/python.md lists them"
                raise UserError(f"prepare has no argument {name}", remedy=remedy)
            if is_table(source):
                options["label_type"] = find_label_type(source, columns.label)
            flags = Prepare(source=_to_names(sources), out=Path(out), **options).as_given(options)
            command, print_line = f"crepe_dist.prepare(…, {str(out)!r})", _print_to_stderr if verbose else print_nothing
            return flags.prepare(data_page.optional_page(), command, print_line=print_line)
        except UserError as error:
            raise translate_for_python(error) from error.__cause__


def _print_to_stderr(line: str) -> None:
    """Print a line to standard error. Standard output is left to the calling program."""
    print(escape_controls(line), file=sys.stderr)


def _to_names(value: Any) -> tuple[str, ...]:
    return tuple(map(str, value if isinstance(value, (list, tuple)) else [value]))


def translate_for_python(error: UserError) -> UserError:
    """Replace the flags in a message by keyword arguments of ``prepare``.

    The function and the command share their checks. The messages contain flags, which Python callers cannot use.
    """
    for name in ("what", "why", "remedy"):
        text = re.sub(r"--(overwrite|strip-html|keep-unlabelled|stratified)\b(?!=)", r"--\1=True", getattr(error, name))
        text = RENAME_FLAGS.sub(
            lambda flags: f"rename={shlex.split(flags[0])[1::2]}{' ' * flags[0].endswith(' ')}", text
        )
        text = re.sub(r"repeat the flag: ((?:--\S+ \S+ ?)+)", lambda flags: f"give text={flags[1].split()[1::2]}", text)
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

    SOURCE is a file (CSV, TSV, JSON Lines, Parquet or Excel; text files may be gzipped), a folder of files named
    train*, test* and validation*, a folder with a subfolder for each class, a URL of such a file or folder, `-` for a
    pipe, or `sample`. If multiple sources are named, their rows are joined.
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

    verify: Optional[Path] = setting(
        None, "Compare the files of a prepared folder with their checksums, and prepare nothing.", PATH_ARGUMENT
    )

    def run(self) -> None:
        if self.verify is not None:
            if self.source or self.out:
                raise UserError("--verify prepares nothing", remedy="leave out SOURCE and --out")
            self.refuse(sorted(self.given - {"verify"}), "--verify prepares nothing")
            verify(open_dataset(self.verify))
            print(f"{self.verify} is unchanged since it was prepared")
            return
        if not self.source:
            raise UserError(
                "there is nothing to prepare",
                "no SOURCE is named",
                f"{invocation.command_line('prepare')} --help shows examples",
            )
        if self.out is None:
            raise UserError("--out is missing", "it names the folder to create", "add --out data/NAME")
        for number in (signal.SIGINT, signal.SIGTERM):
            # A shell can set a background job to ignore a signal. Such a signal must stay ignored.
            if signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, _interrupt)
        command = escape_path(f"{invocation.command_line('prepare')} {shlex.join(sys.argv[1:])}")
        try:
            with _show_progress_bar() as show_progress:
                print_line = partial(print, flush=True)
                summary = self.prepare(
                    data_page.optional_page(),
                    command,
                    show_progress,
                    print_line=lambda line: print_line(escape_controls(line)),
                )
        except KeyboardInterrupt:
            raise KeyboardInterrupt(f"stopped and cleaned up. To run the command again: {command}") from None
        data_page.show(summary, Console(), escape_path(self.out))


def _interrupt(*_: object) -> None:
    """Handle a signal like Ctrl-C, and ignore further signals during the clean-up."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


@contextmanager
def _show_progress_bar() -> Iterator[ProgressCallback]:
    """Yield a function that shows a progress bar for each phase. The bar is only shown if stderr is a terminal."""
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Bar(*columns, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bar:
        tasks: dict[str, TaskID] = {}

        def show(phase: str, done: int, total: int) -> None:
            if phase not in tasks:
                tasks[phase] = bar.add_task(escape(phase))
            bar.update(tasks[phase], completed=done, total=total or None)

        yield show
