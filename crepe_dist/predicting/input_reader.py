"""Texts to classify: of files and pipes, with unusable rows in their places, and in memory."""

from __future__ import annotations

import heapq
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import chain, islice, repeat
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from crepe_dist.data.text_preprocessing import TextPreprocessor
from crepe_dist.errors import UserError
from crepe_dist.formatting import pluralize
from crepe_dist.invocation import command_line
from crepe_dist.preparing.dataframe_source import extract_table_texts, is_missing, is_table
from crepe_dist.preparing.formats import ENCODING_REMEDY, NOT_UTF_8, InvalidRow, OpenFile, RawBatch, Row, check_text
from crepe_dist.preparing.formats.columns import ColumnSpec
from crepe_dist.preparing.label_parsing import LabelFormat
from crepe_dist.preparing.open_source import EFFECTIVE_OPTIONS, check_options_used, open_source
from crepe_dist.preparing.sources import LINES, LINES_OR_FASTTEXT, PIPE, ReadOptions, Source, format_by_suffix
from crepe_dist.preparing.worker_pool import call_inherited, open_worker_pool
from crepe_dist.settings.fields import COLUMN, HEADERS, Choice, Repeated, Settings, setting
from crepe_dist.settings.flags import ENCODING, HEADER, UTF_8, TextEncoding

if TYPE_CHECKING:
    from crepe_dist.predicting.predictor import Predictor

KINDS = (LINES, "csv", "tsv", "jsonl", "parquet", "xlsx", "fasttext")
ROWS_PER_GROUP = 256  # rows in a group
LOST_ROWS_PER_BATCH = 1 << 14  # lost rows in a batch
InputAndPrediction = TypeVar("InputAndPrediction")


class InputRow(NamedTuple):
    """Row of a file or pipe.

    Args:
        line: number of the row's first line, from 1; in a Parquet file, the number of the row.
        problem: reason why the row cannot be classified; empty if it can.
        id: value of the column of ids; empty if there is none.
    """

    line: int
    text: str
    problem: str = ""
    cells: tuple[str, ...] = ()
    id: str = ""

    @property
    def place(self) -> str:
        """Line and id, for people."""
        return f"line {self.line}" + (f" ({self.id})" if self.id else "")


class InputReader:
    """Iterator over the rows of one file or pipe, in bounded memory.

    Attributes:
        columns: names of the columns; empty if their values are not kept.
        delimiter: delimiter of a CSV file; a comma for other formats.
        format: one of ``KINDS``.
    """

    def __init__(self, opened: OpenFile) -> None:
        self.columns = opened.kept_columns
        self.delimiter = opened.delimiter if opened.format == "csv" else ","
        self.format = opened.format
        self._opened = opened

    def __iter__(self) -> Iterator[list[InputRow]]:
        """Yield groups of rows: some hundred at a time from a file, those that have arrived from a pipe."""
        return chain.from_iterable(map(self._groups, self._batches()))

    def map_groups(
        self, answer: Callable[[list[InputRow]], InputAndPrediction], processes: int
    ) -> Iterator[InputAndPrediction]:
        """Yield the answers to the groups, in order; processes that are forked from this one share a large file."""
        batches = self._batches()
        first = list(islice(batches, 2))
        batches = chain(first, batches)
        if len(first) < 2 or processes < 2:
            yield from map(answer, chain.from_iterable(map(self._groups, batches)))
            return
        fewer = f"OMP_NUM_THREADS=1 {command_line('predict')} …"
        with open_worker_pool(processes, fewer, lambda batch: list(map(answer, self._groups(batch)))) as workers:
            yield from chain.from_iterable(workers.map_in_order(call_inherited, batches))

    def _batches(self) -> Iterator[RawBatch]:
        """Yield the batches; divide one of lost rows, of which a damaged file may declare any number."""
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
        """Yield one row per broken record; one per lost row for Parquet, where a record stands for several rows."""
        problem = f"{bad.reason}; it begins: {bad.excerpt}" if bad.excerpt else bad.reason
        count = bad.lines if self._opened.format == "parquet" else 1
        return map(InputRow, range(bad.line, bad.line + count), repeat(""), repeat(problem))


def open_inputs(
    name: str, kind: str | None = None, reading: ReadOptions | None = None, *, keep: bool = False
) -> InputReader:
    """Open a file of texts.

    Args:
        name: path of the file, or ``-`` for standard input.
        kind: one of ``KINDS``; ``None`` decides by the file name, and otherwise reads lines: fastText's lines if the
            first one begins with ``__label__``.
        reading: header and columns of a table; its ``format`` is ignored.
        keep: whether to keep the values of all columns.

    Raises:
        UserError: the file cannot be read, or the text column is ambiguous.
    """
    path = None if name == PIPE else Path(name)
    if path is not None and not (path.is_file() or path.is_fifo()):
        what = "is not a file" if path.exists() else "does not exist"
        raise UserError(f"{name} {what}", remedy="name a file or a pipe, or - for standard input")
    # An empty label: look for no label column, but do not mistake one for the text.
    source = Source(path, name, format=format_of(name, kind), label="")
    opened = open_source(source, reading or ReadOptions(), keep_cells=keep, live=True)
    return InputReader(opened if path else opened._replace(name="the standard input"))


def format_of(name: str, kind: str | None) -> str:
    """Return the format of a file of texts, given one of ``KINDS`` or ``None``."""
    return kind or (None if name == PIPE else format_by_suffix(Path(name))) or LINES_OR_FASTTEXT


@dataclass
class TextFlags(Settings):
    """Format and columns of a file of texts."""

    input_format: str | None = setting(
        None,
        "format; default: by the file name, else lines, or fasttext if the first line begins with __label__",
        Choice(KINDS),
    )
    header: str = setting("auto", HEADER, Choice(HEADERS))
    encoding: str | None = setting(None, ENCODING, TextEncoding())
    text_column: tuple[str, ...] = setting(
        (),
        "column name, or number from 1; repeat it to join several in this order; default: the columns that the model "
        "was trained on, else guessed",
        Repeated(COLUMN),
    )

    def opened(self, name: str, model: Predictor, id: str | None = None, *, keep: bool = False) -> InputReader:
        """Open a file of texts for a model; see ``open_inputs``.

        Args:
            id: column of the ids that the user gave; ``None``: the column of the ids in the model's data.
        """
        given = ReadOptions(None, self.header, ColumnSpec(texts=tuple(self.text_column), id=id), encoding=self.encoding)
        options = unlabelled_options(model.reading, model.composition, model.id, given)
        inputs = open_inputs(name, self.input_format, options, keep=keep)
        check_options_used(given, EFFECTIVE_OPTIONS[inputs.format], f"{name}, which is read as {inputs.format}")
        return inputs


def warn_of_encoding(name: str, rows: Iterable[InputRow]) -> None:
    """Warn if rows are left out because their bytes are not of the encoding."""
    if count := sum(row.problem.startswith(NOT_UTF_8) for row in rows):
        warnings.warn(f"{pluralize(count, 'row')} of {name} left out: {NOT_UTF_8}; {ENCODING_REMEDY}", stacklevel=2)


class InvalidInput(UserError, ValueError):
    """Texts, labels or parameters that cannot be used; scikit-learn expects a ``ValueError``."""


def labelled_options(
    trained: ReadOptions, composition: TextPreprocessor, id: str | None, given: ReadOptions
) -> ReadOptions:
    """Return the options to read labelled rows as the data of a model were read.

    Args:
        trained: options that the data of the model were read with.
        composition: composition of the model's texts.
        id: column of the ids in the data of the model; new rows may lack it.
        given: options that the user gave. They take precedence.
    """
    own, source = given.columns, given.columns if given.columns.label or given.columns.labels else trained.columns
    columns = model_columns(
        composition,
        label=source.label,
        labels=source.labels,
        needs_label=source.needs_label,
        texts=own.texts or (() if composition.columns else trained.columns.texts),
        id=own.id or id,
        id_required=own.id is not None,
    )
    return replace(
        trained,
        format=given.format or trained.format,
        header=trained.header if given.header == "auto" else given.header,
        columns=columns,
        strip_html=composition.strip_html,
        encoding=given.encoding,
        default_encoding=trained.encoding or UTF_8,
    )


def unlabelled_options(
    trained: ReadOptions, composition: TextPreprocessor, id: str | None, given: ReadOptions
) -> ReadOptions:
    """Return the options to read texts as ``labelled_options`` reads labelled rows.

    Files of texts may lack the label, so the positions of columns in the data of the model say nothing about them. They
    may also lack a header that these data have.
    """
    options = labelled_options(trained, composition, id, given)
    return replace(
        options,
        header="auto" if given.header == "auto" and options.header == "yes" else options.header,
        columns=replace(options.columns, labels=(), texts=given.columns.texts),
        labelling=LabelFormat(),
    )


def model_columns(composition: TextPreprocessor, **given: Any) -> ColumnSpec:
    """Return the columns that a model was trained on, and those that are given besides."""
    categories = tuple(each.name for each in composition.beside if each.categories is not None)
    numbers = tuple(each.name for each in composition.beside if each.categories is None)
    return ColumnSpec(preferred_texts=composition.columns, categories=categories, numbers=numbers, **given)


def extract_texts(texts: Any, wanted: ColumnSpec) -> list[str]:
    """Return the texts of an iterable, an array, a series, or a table.

    The columns of a table, which is a data frame or a mapping of names to columns, are chosen as those of a file.

    Args:
        wanted: columns to choose.

    Raises:
        InvalidInput: ``texts`` is something else, its columns cannot be chosen, or a text is not a string.
    """
    if is_table(texts):
        try:
            texts = extract_table_texts(texts, wanted)
        except UserError as error:
            raise InvalidInput(error.what, error.why, "give one column of texts, such as table['text']") from None
    shape: tuple[int, ...] | None = getattr(texts, "shape", None)
    # A set has no order for the answers.
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
    """Raise ``UserError`` unless ``name`` can name a column."""
    if not isinstance(name, (str, type(None))):
        remedy = 'give its name, and texts and labels as one table: {"text": texts, "label": labels}'
        raise UserError(f"the column of the {what} cannot be of type {type(name).__name__}", remedy=remedy)
