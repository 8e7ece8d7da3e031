"""Command ``prepare``, and the function ``crepe_dist.prepare``."""

import shlex
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, TaskID, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from crepe_dist import invocation
from crepe_dist.data.dataset import UNLABELLED
from crepe_dist.errors import UserError, escape_controls
from crepe_dist.files.safe_read import escape_path
from crepe_dist.preparing.flags import PreparationFlags
from crepe_dist.preparing.from_python import prepare_from_python
from crepe_dist.preparing.worker_pool import ProgressCallback, print_nothing
from crepe_dist.reports import data_page

if TYPE_CHECKING:
    from crepe_dist.preparing.from_python import Table


def prepare(
    source: "Table | str | Path | Sequence[str | Path]",
    out: str | Path,
    *,
    text: str | Sequence[str] | None = None,
    label: str | None = None,
    weight: str | None = None,
    label_columns: Sequence[str] = (),
    id: str | None = None,
    test: "Table | str | Path | float | None" = None,
    validation: "Table | str | Path | float | None" = None,
    unlabelled: "Table | str | Path | Sequence[str | Path] | None" = None,
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
        text: Text column, or multiple text columns, which are joined in this order. If it is ``None``, the columns
            are detected by common names.
        label: Label column. If it is ``None``, the column is detected by common names.
        weight: Column with the loss weight of each training row. If it is ``None``, all rows have the same weight.
        label_columns: One column per class. These columns replace ``label``. Their values are 0 or 1, or probabilities
            if ``labels`` is ``"soft"``.
        id: Id column. Lists of mistakes and predictions show the ids. If it is ``None``, rows have no id.
        test: Table or file of the test split, or the fraction of the rows of ``source`` that the test split gets. If it
            is ``None``, the fraction is 0.2.
        validation: Table or file of the validation split, or the fraction of the rows of ``source`` that the validation
            split gets. If it is ``None``, the fraction is 0.1 if there are at least 2,000 rows, and 0 otherwise.
        unlabelled: Table or files of unlabelled texts for training. If it is ``None``, there are no unlabelled texts.
        verbose: Print to standard error which columns are read.
        options: Further flags of the command ``prepare``, such as ``max_bad=0.05`` or ``overwrite=True``. If ``labels``
            is ``"multilabel"``, labels may be lists.

    Returns:
        The content of ``report.json``.

    Raises:
        UserError: A column does not exist, columns differ in length, too many rows are invalid, or ``out`` exists.
    """
    columns = {"text": text, "label": label, "weight": weight, "label_columns": label_columns, "id": id}
    return prepare_from_python(
        source,
        Path(out),
        {**columns, "test": test, "validation": validation, UNLABELLED: unlabelled, **options},
        command=f"crepe_dist.prepare(…, {str(out)!r})",
        render_page=data_page.optional_page(),
        print_line=_print_to_stderr if verbose else print_nothing,
    )


def _print_to_stderr(line: str) -> None:
    """Print a line to standard error, because standard output belongs to the calling program."""
    print(escape_controls(line), file=sys.stderr)


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
        """

    def run(self) -> None:
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
