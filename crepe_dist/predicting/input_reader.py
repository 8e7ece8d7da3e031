"""Reader of texts to classify, from files, pipes and memory. Invalid rows keep their positions."""

import heapq
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import chain, islice, repeat
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from crepe_dist.data.text_preprocessing import TextPreprocessor
from crepe_dist.errors import UserError
from crepe_dist.invocation import command_line
from crepe_dist.preparing.dataframe_source import extract_table_texts, is_missing, is_table
from crepe_dist.preparing.formats import InvalidRow, OpenFile, RawBatch, Row, check_text
from crepe_dist.preparing.formats.columns import ColumnSpec
from crepe_dist.preparing.label_parsing import LabelFormat
from crepe_dist.preparing.open_source import open_source
from crepe_dist.preparing.sources import LINES, PIPE, ReadOptions, Source, format_by_suffix
from crepe_dist.preparing.worker_pool import call_inherited, open_worker_pool
from crepe_dist.settings.flags import UTF_8

if TYPE_CHECKING:
    from crepe_dist.predicting.predictor import Predictor

INPUT_FORMATS = (LINES, "csv", "tsv", "jsonl", "parquet")
ROWS_PER_GROUP = 256  # Number of rows that are classified together.
# Maximum number of unreadable rows in a batch. A damaged Parquet file may declare any number of rows.
LOST_ROWS_PER_BATCH = 1 << 14
InputAndPrediction = TypeVar("InputAndPrediction")


class InputRow(NamedTuple):
    """Row of a file or pipe.

    Args:
        line: Number of the row's first line, from 1. In a Parquet file, the number of the row.
        text: Text to classify. Empty if there is an error.
        error: Reason why the row cannot be classified. Empty if the row is valid.
        cells: Values of all columns of the file, if they are copied to the output.
        id: Value of the id column. Empty if there is no id column.
    """

    line: int
    text: str
    error: str = ""
    cells: tuple[str, ...] = ()
    id: str = ""

    @property
    def place(self) -> str:
        """Line number and id of the row, for messages."""
        return f"line {self.line}" + (f" ({self.id})" if self.id else "")


class InputReader:
    """Iterator over the rows of one file or pipe, in bounded memory.

    Attributes:
        columns: Names of the columns that are copied to the output. Empty if no columns are copied.
        delimiter: Delimiter of a CSV file. A comma for other formats.
        format: One of ``INPUT_FORMATS``.
    """

    def __init__(self, opened: OpenFile) -> None:
        self.columns = opened.kept_columns
        self.delimiter = opened.delimiter if opened.format == "csv" else ","
        self.format = opened.format
        self._opened = opened

    def __iter__(self) -> Iterator[list[InputRow]]:
        """Yield groups of up to ``ROWS_PER_GROUP`` rows. Rows from a pipe are yielded as soon as they arrive."""
        return chain.from_iterable(map(self._groups, self._batches()))

    def map_groups(
        self, function: Callable[[list[InputRow]], InputAndPrediction], num_processes: int
    ) -> Iterator[InputAndPrediction]:
        """Apply a function to the groups of rows. Yield the results in the order of the groups.

        Args:
            function: Function that classifies a group. It need not be picklable, because the processes are forked.
            num_processes: Number of processes among which a large file is divided. A small file is processed in the
                calling process.
        """
        batches = self._batches()
        first_batches = list(islice(batches, 2))
        batches = chain(first_batches, batches)
        if len(first_batches) < 2 or num_processes < 2:
            yield from map(function, chain.from_iterable(map(self._groups, batches)))
            return
        single_process_command = f"OMP_NUM_THREADS=1 {command_line('predict')} …"
        with open_worker_pool(
            num_processes, single_process_command, lambda batch: list(map(function, self._groups(batch)))
        ) as workers:
            yield from chain.from_iterable(workers.map_in_order(call_inherited, batches))

    def _batches(self) -> Iterator[RawBatch]:
        """Yield the batches of the file. Split a batch of unreadable rows into smaller ones, because it may be huge."""
        for batch in self._opened.iter_checked():
            lost = batch.invalid[0] if batch.invalid and self.format == "parquet" else InvalidRow(0, "", "", 0)
            for start in range(0, lost.lines, LOST_ROWS_PER_BATCH):
                bad = lost._replace(line=lost.line + start, lines=min(LOST_ROWS_PER_BATCH, lost.lines - start))
                yield batch._replace(invalid=(bad,))
            if not lost.lines:
                yield batch
        self._opened.file.close()

    def _groups(self, batch: RawBatch) -> Iterator[list[InputRow]]:
        parsed = self._opened.parse(batch)
        rows: Iterator[InputRow] = map(self._input, parsed.rows)
        if bad := sorted((*parsed.invalid, *batch.invalid), key=attrgetter("line")):
            rows = heapq.merge(rows, chain.from_iterable(map(self._unusable, bad)), key=attrgetter("line"))
        while group := list(islice(rows, ROWS_PER_GROUP)):
            yield group

    def _input(self, row: Row) -> InputRow:
        try:
            check_text(row.text)
        except ValueError as error:
            return InputRow(row.line, "", str(error), row.cells, row.id)
        return InputRow(row.line, row.text, "", row.cells, row.id)

    def _unusable(self, bad: InvalidRow) -> Iterator[InputRow]:
        """Return the input rows for an invalid row. In Parquet, one ``InvalidRow`` may represent many rows."""
        error = f"{bad.reason}; it begins: {bad.excerpt}" if bad.excerpt else bad.reason
        count = bad.lines if self._opened.format == "parquet" else 1
        return map(InputRow, range(bad.line, bad.line + count), repeat(""), repeat(error))


def open_inputs(
    name: str, format: str | None = None, reading: ReadOptions | None = None, *, keep_columns: bool = False
) -> InputReader:
    """Open a file that contains texts.

    Args:
        name: Path of the file, or ``-`` for standard input.
        format: One of ``INPUT_FORMATS``. If it is ``None``, the file name determines the format. If the file name has
            no known suffix, the format is lines.
        reading: Columns. The attribute ``format`` is ignored.
        keep_columns: True to read the values of all columns, so that they can be copied to the output.

    Raises:
        UserError: The file cannot be read, its format is none of ``INPUT_FORMATS``, or the text column is ambiguous.
    """
    path = None if name == PIPE else Path(name)
    if path is not None and not (path.is_file() or path.is_fifo()):
        what = "is not a file" if path.exists() else "does not exist"
        raise UserError(f"{name} {what}", remedy="name a file or a pipe, or - for standard input")
    format = format or format_by_suffix(Path(name)) or LINES
    if format not in INPUT_FORMATS:
        raise UserError(f"{name} is an {format} file, whose rows cannot be read", remedy="save it as CSV")
    # Because ``label`` is empty, no label column is required. If there is a label column, it is not used as the text.
    source = Source(path, name, format=format, label="")
    opened = open_source(source, reading or ReadOptions(), keep_cells=keep_columns, live=True)
    return InputReader(opened if path else opened._replace(name="standard input"))


def open_inputs_for_model(
    name: str,
    model: "Predictor",
    format: str | None = None,
    texts: Sequence[str] = (),
    *,
    keep_columns: bool = False,
) -> InputReader:
    """Open a file that contains texts, for a model; see ``open_inputs``.

    Args:
        texts: Text columns that the user specified.
    """
    explicit = ReadOptions(columns=ColumnSpec(texts=tuple(texts)))
    options = unlabelled_options(model.reading, model.composition, model.id, explicit)
    return open_inputs(name, format, options, keep_columns=keep_columns)


class InvalidInput(UserError, ValueError):
    """Error about invalid texts, labels or parameters. It is a ``ValueError``, as scikit-learn requires."""


def labelled_options(
    trained: ReadOptions, composition: TextPreprocessor, id: str | None, explicit: ReadOptions
) -> ReadOptions:
    """Return the options that read labelled rows in the same way as the training data of a model.

    Args:
        trained: Options that the training data were read with.
        composition: Preprocessing of the training texts.
        id: Id column of the training data. New rows may lack this column.
        explicit: Options that the user specified. They take precedence.
    """
    columns = explicit.columns
    label_columns = columns if columns.label or columns.labels else trained.columns
    columns = model_columns(
        composition,
        label=label_columns.label,
        labels=label_columns.labels,
        needs_label=label_columns.needs_label,
        texts=columns.texts or (() if composition.columns else trained.columns.texts),
        id=id,
        id_required=False,
    )
    return replace(
        trained,
        format=explicit.format,
        default_format=trained.format,
        columns=columns,
        strip_html=composition.strip_html,
        encoding=explicit.encoding,
        default_encoding=trained.encoding or UTF_8,
    )


def unlabelled_options(
    trained: ReadOptions, composition: TextPreprocessor, id: str | None, explicit: ReadOptions
) -> ReadOptions:
    """Return the options that read unlabelled texts; see ``labelled_options`` for the arguments.

    A file of unlabelled texts may lack the label column, which shifts the other columns. The column numbers of the
    training data are therefore not used.
    """
    options = labelled_options(trained, composition, id, explicit)
    return replace(
        options,
        columns=replace(options.columns, labels=(), texts=explicit.columns.texts),
        labelling=LabelFormat(),
    )


def model_columns(composition: TextPreprocessor, **attributes: Any) -> ColumnSpec:
    """Return the text columns of a model, with further attributes of ``ColumnSpec``."""
    return ColumnSpec(preferred_texts=composition.columns, **attributes)


def extract_texts(texts: Any, columns: ColumnSpec) -> list[str]:
    """Return the texts of an iterable, an array, a series, or a table.

    Args:
        texts: Texts. A table is a data frame, or a mapping of column names to columns. Its text columns are selected
            in the same way as the text columns of a file.
        columns: Columns to select from a table.

    Raises:
        InvalidInput: ``texts`` has another type, the columns cannot be selected, or a text is not a string.
    """
    if is_table(texts):
        try:
            texts = extract_table_texts(texts, columns)
        except UserError as error:
            raise InvalidInput(error.what, error.why, "give one column of texts, such as table['text']") from None
    shape: tuple[int, ...] | None = getattr(texts, "shape", None)
    # A set is refused because predictions are returned in the order of the texts, and a set has no order.
    if isinstance(texts, (str, bytes, bytearray, set, frozenset)) or not hasattr(texts, "__iter__") or shape == ():
        remedy = "give a list of strings, or a data frame; put a single text into a list: [text]"
        raise InvalidInput(f"the texts are of type {type(texts).__name__}", remedy=remedy)
    if shape is not None and len(shape) == 2 and shape[1] == 1 and hasattr(texts, "ravel"):
        texts = texts.ravel()
    elif shape is not None and len(shape) != 1:
        remedy = "choose one column: array[:, 0]; in a pipeline with ColumnTransformer"
        raise InvalidInput(f"the texts have {len(shape)} dimensions: {' × '.join(map(str, shape))}", remedy=remedy)
    values = texts.tolist() if hasattr(texts, "tolist") else list(texts)
    for row, value in enumerate(values):
        if not isinstance(value, str):
            what = f"text {row} is {'missing' if is_missing(value) else 'not a string'}: {value!r:.40}"
            remedy = "decode bytes; leave missing texts out, or replace them by '' (column.fillna(''))"
            raise InvalidInput(what, remedy=remedy)
    return values


def check_column(what: str, name: object) -> None:
    """Raise ``UserError`` unless ``name`` is a string or ``None``.

    Args:
        what: Content of the column, for the message.
        name: Column name that the user passed.
    """
    if not isinstance(name, (str, type(None))):
        remedy = 'give its name, and texts and labels as one table: {"text": texts, "label": labels}'
        raise UserError(f"the column of the {what} cannot be of type {type(name).__name__}", remedy=remedy)
