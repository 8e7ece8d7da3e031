"""Reader of Parquet files, including the files that the library `datasets` of Hugging Face writes."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from crepe_dist.errors import UserError
from crepe_dist.files.safe_read import sha256
from crepe_dist.preparing.formats import (
    BATCH_BYTES,
    DETECTION_ROWS,
    MAX_RECORD,
    TOO_LONG,
    InvalidRow,
    OpenFile,
    Parsed,
    RawBatch,
    excerpt,
)
from crepe_dist.preparing.formats.columns import ColumnSpec, ResolvedColumns, choose_columns
from crepe_dist.preparing.formats.lines import GZIP_MAGIC

# Example values. They replace dates and missing numbers while the columns are chosen.
DATE, NUMBER = "2000-01-01", "1"
# Maximum number of rows that are read at a time.
MAX_ROWS = 8192
# Approximate size in bytes of the rows that are read at a time. The size is exact if all rows have the same length.
MAX_SIZE = 1 << 25
# Maximum size of a column in a row group, in bytes.
MAX_CHUNK = 1 << 30


def _parse_arrow(
    columns: ResolvedColumns,
    label: str | None,
    label_names: Mapping[int, str] | None,
    cell_columns: Sequence[int],
    nested: bool,
    batch: RawBatch,
) -> Parsed:
    """Parse an Arrow record batch. The batch contains only the columns to read, converted to text.

    Args:
        columns: Columns of the batches.
        label: Class of all rows, if it is given by the file name.
        label_names: Names of the integers in the label column (``ClassLabel`` of `datasets`). ``None`` if unknown.
        cell_columns: Positions of the columns whose values are returned in ``Row.cells``.
        nested: True if the label may be a list, encoded as JSON.
    """
    result = Parsed([], [])
    for number, values in enumerate(zip(*map(_values, batch.content.columns)), start=batch.line):
        row = columns.make_row(number, values, label, tuple(values[i] for i in cell_columns))
        try:
            if len(row.text) > MAX_RECORD:
                raise ValueError(TOO_LONG)
            if label_names is not None and row.label:
                name = _name_labels if nested else _name_label
                row = row._replace(label=name(row.label, label_names))
            result.rows.append(row)
        except ValueError as error:
            result.invalid.append(InvalidRow(number, str(error), excerpt(row.text)))
    return result


def _name_label(number: str, names: Mapping[int, str]) -> str:
    """Return the name of a label.

    Raises:
        ValueError: The number has no name.
    """
    if not number.isdecimal() or len(number) > 9 or int(number) not in names:
        raise ValueError(f"unknown label: {number:.40} is not one of 0 to {len(names) - 1}")
    return names[int(number)]


def _name_labels(cell: str, names: Mapping[int, str]) -> str:
    """Return the class names of the number, or of the list of numbers, in a cell. The result is a JSON list.

    A number without a name is returned as text.

    Raises:
        ValueError: The cell starts with "[", but is not a JSON list of numbers.
    """
    try:
        numbers = json.loads(cell) if cell.startswith("[") else [int(cell)] if cell.isdecimal() else []
        return json.dumps([names.get(number, f"{number}") for number in numbers], ensure_ascii=False)
    except (TypeError, RecursionError):
        raise ValueError(f"unknown label: {cell:.40} is not a list of numbers") from None


class ParquetReader:
    """Reader of some columns of a Parquet file, in batches of bounded size.

    Args:
        schema: Schema of the file.
        columns: Names of the columns.
        convert: Function that converts the array of a column. Its arguments are the name of the column and the array,
            which may be a dictionary array.
        of_text: If True, a row group is unreadable if a column has more than ``MAX_CHUNK`` bytes, or more than
            ``MAX_RECORD`` bytes per row on average.
    """

    encoding = encoding_warning = ""

    def __init__(
        self,
        path: Path,
        schema: pa.Schema,
        columns: Sequence[str],
        convert: Callable[[str, pa.Array], pa.Array],
        *,
        of_text: bool = True,
    ) -> None:
        self._path, self._columns, self._convert, self._of_text = path, columns, convert, of_text
        self.position = 0
        # Columns of texts and bytes are read as dictionary arrays, which store a repeated text only once. Therefore the
        # size of the rows can be computed before the text is copied to each of them.
        repeated = [name for name in columns if _has_length(schema.field(name).type)]
        self._file = pq.ParquetFile(path, read_dictionary=repeated, pre_buffer=False, buffer_size=1 << 20)

    def sha256(self) -> str:
        return sha256(self._path)

    def close(self) -> None:
        self._file.close()

    def __iter__(self) -> Iterator[RawBatch]:
        metadata, size, end = self._file.metadata, self._path.stat().st_size, 0
        for group in range(metadata.num_row_groups):
            line, end = end + 1, end + metadata.row_group(group).num_rows
            try:
                for rows in self._pieces(group):
                    self.position = size * (line + rows.num_rows - 1) // max(1, metadata.num_rows)
                    yield RawBatch(line, rows, rows.nbytes)
                    line += rows.num_rows
            except (pa.ArrowException, OSError, ValueError, MemoryError) as error:
                reason = f"unreadable: {error}"[:300]
                yield RawBatch(line, pa.record_batch([], names=[]), 0, (InvalidRow(line, reason, "", end + 1 - line),))

    def _pieces(self, group: int) -> Iterator[pa.RecordBatch]:
        """Yield a row group in small batches.

        The file may store a long text once for many rows, so the rows can be much larger in memory than in the file.
        """
        rows = self._rows_at_a_time(self._file.metadata.row_group(group))
        for batch in self._file.iter_batches(rows, row_groups=[group], columns=self._columns, use_threads=False):
            ends = np.cumsum(sum((_text_sizes(column) for column in batch.columns), np.zeros(batch.num_rows, np.int64)))
            start = 0
            while start < batch.num_rows:
                last_byte = BATCH_BYTES + (ends[start - 1] if start else 0)
                end = max(start + 1, int(np.searchsorted(ends, last_byte, "right")))
                piece = batch.slice(start, end - start)
                arrays = [self._convert(name, piece.column(name)) for name in self._columns]
                yield pa.record_batch(arrays, names=self._columns)
                start = end

    def _rows_at_a_time(self, group: Any) -> int:
        """Return the number of rows that fit into memory together, according to the sizes in the footer.

        Arrow has no limit of its own. If the footer is wrong, reading a page may allocate the 2 GiB that the header of
        the page can request.

        Raises:
            ValueError: The rows of a column are too long, or the column is too large.
        """
        rows, total = MAX_ROWS, 1
        for number, chunk in enumerate(map(group.column, range(group.num_columns))):
            path, size = chunk.path_in_schema, chunk.total_uncompressed_size
            is_nested = self._file.schema.column(number).max_repetition_level > 0
            if not self._of_text:
                total += max(size, 8 * chunk.num_values * is_nested)
                continue
            # The path of a nested value starts with the name of its column. The name may contain a full stop.
            if not any(path == name or path.startswith(f"{name}.") for name in self._columns):
                continue
            if size > min(MAX_CHUNK, MAX_RECORD * group.num_rows):
                raise ValueError(f"a column of {size:,} bytes in {group.num_rows:,} rows")
            total += size
            if is_nested:  # One row may contain all values of the column.
                rows = min(rows, 2 * MAX_SIZE // max(1, size))
        return max(1, min(rows, MAX_SIZE * int(group.num_rows) // total))


def _text_sizes(column: pa.Array) -> Any:
    """Return the size of each text in bytes, int64 [rows]; 0 for other types."""
    if not pa.types.is_dictionary(column.type) or not _has_length(column.type.value_type):
        return 0
    lengths = pc.binary_length(column.dictionary).cast(pa.int64()).take(column.indices)
    return lengths.fill_null(0).to_numpy(zero_copy_only=False)


def open_parquet(
    path: Path, name: str, spec: ColumnSpec, label: str | None, *, keep_cells: bool, nested: bool
) -> OpenFile:
    """Open a Parquet file and choose its columns.

    Args:
        keep_cells: If True, ``Row.cells`` contains the values of all columns that can be converted to text.
        nested: True if the label may be a list.

    Raises:
        UserError: The file is not Parquet, or a column in ``spec`` does not exist or is not text.
    """
    with path.open("rb") as stream:
        if stream.read(2) == GZIP_MAGIC:
            raise UserError(f"{name} is gzipped", "Parquet has its own compression", "decompress it first: gunzip")
    try:
        schema = pq.read_schema(path)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise UserError(
            f"{name} cannot be read as Parquet",
            str(error)[:300],
            "check that the file is complete, or get another copy",
        ) from error
    simple = [field for field in schema if not pa.types.is_nested(field.type) or (nested and _is_list(field.type))]
    names, types = [field.name for field in simple], [field.type for field in simple]
    first = _first_rows(path, schema, simple)
    columns = choose_columns(name, names, spec, has_label=label is not None, rows=first)
    for position in columns.texts:
        kind = types[position]
        if not _is_text(kind.value_type if pa.types.is_dictionary(kind) else kind):
            raise UserError(
                f"{name}: column {names[position]!r} is not text, but {kind}",
                remedy="name a text column with --text-column",
            )
    cell_columns = [i for i, kind in enumerate(types) if keep_cells and _converts_to_text(kind)]
    read = sorted({*columns.used, *cell_columns})
    for column in columns.names_at(read):
        if names.count(column) > 1:
            raise UserError(f"{name} has several columns named {column!r}", remedy="rename them, or choose others")
    label_names = None if columns.label is None else _label_names(schema, names[columns.label])
    of_batch = columns.reindex(read)
    parse = partial(_parse_arrow, of_batch, label, label_names, tuple(map(read.index, cell_columns)), nested)
    rows = _open_as_text(path, schema, of_batch.names)
    texts, kept_names = columns.names_at(columns.texts), columns.names_at(cell_columns)
    reads, hint = columns.describe(), columns.unread_hint()
    return OpenFile(name, rows, rows, parse, "parquet", reads, texts, kept_names, columns=columns, hint=hint)


def _first_rows(path: Path, schema: pa.Schema, fields: Sequence[pa.Field]) -> list[list[str]]:
    """Return the first rows as text, so that columns are chosen as in other formats.

    A column of dates has the same example in each row, and a missing number is replaced by an example. A column that
    cannot be converted to text has empty values.
    """
    names = [field.name for field in fields]
    types = [field.type.value_type if pa.types.is_dictionary(field.type) else field.type for field in fields]
    by_type = [DATE if pa.types.is_temporal(kind) else NUMBER if _is_number(kind) else "" for kind in types]
    readable = [name for name, kind in zip(names, types) if names.count(name) == 1 and _converts_to_text(kind)]
    contents = (batch.content.slice(0, DETECTION_ROWS) for batch in _open_as_text(path, schema, readable))
    values = chain.from_iterable(zip(*map(_values, content.columns)) for content in contents)
    rows = list(islice(values, DETECTION_ROWS)) if readable else []
    cells = [dict(zip(readable, row)) for row in rows or [("",) * len(readable)]]
    return [
        [DATE if example == DATE else row.get(name) or example for name, example in zip(names, by_type)]
        for row in cells
    ]


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind))


def _open_as_text(path: Path, schema: pa.Schema, columns: Sequence[str]) -> ParquetReader:
    """Open a file. Return a reader that converts the given columns to text."""
    return ParquetReader(path, schema, columns, lambda _, array: _as_text(array))


def own_rows(path: Path) -> tuple[pa.Schema, ParquetReader]:
    """Open a Parquet file. Return its schema, and a reader of all columns that keeps their types.

    Raises:
        UserError: Several columns have the same name.
    """
    schema = pq.read_schema(path)
    if len(set(schema.names)) < len(schema.names):
        raise UserError(f"{path} has several columns with the same name", remedy="rename them, or use --format csv")

    def original(name: str, array: pa.Array) -> pa.Array:
        kind = schema.field(name).type
        is_repeated = pa.types.is_dictionary(array.type) and not pa.types.is_dictionary(kind)
        return (array.dictionary_decode() if is_repeated else array).cast(kind)

    return schema, ParquetReader(path, schema, schema.names, original, of_text=False)


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _has_length(kind: pa.DataType) -> bool:
    return _is_text(kind) or bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind)) and not pa.types.is_nested(kind.value_type)


def _converts_to_text(kind: pa.DataType) -> bool:
    """Return True if Arrow can convert values of a type to text."""
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    try:
        pa.array([], kind).cast(pa.large_string())
    except pa.ArrowException:
        return False
    return True


def _label_names(schema: pa.Schema, column: str) -> dict[int, str] | None:
    """Return the class names that `datasets` stores for the integers in a ``ClassLabel`` column.

    Return ``None`` if there are none.
    """
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        feature = features[column]
        if isinstance(feature, list):  # The column has lists of labels.
            (feature,) = feature
        names = feature.get("feature", feature)["names"]
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError):
        return None
    return dict(enumerate(map(str, names))) if isinstance(names, list) else None


def _as_text(array: pa.Array) -> pa.Array:
    array = array.dictionary_decode() if pa.types.is_dictionary(array.type) else array
    if _is_list(array.type):
        lists = [None if values is None else json.dumps(values, ensure_ascii=False) for values in array.to_pylist()]
        array = pa.array(lists, pa.large_string())
    if pa.types.is_floating(array.type):  # NaN is a missing label.
        array = pc.if_else(pc.is_nan(array), None, array)
    binary = _has_length(array.type) and not _is_text(array.type)
    # Binary values stay bytes here and are decoded one by one later, so that invalid UTF-8 affects only one row.
    return array.cast(pa.large_binary() if binary else pa.large_string())


def _values(column: pa.Array) -> list[str]:
    try:
        values = column.to_pylist()
    except UnicodeDecodeError:
        values = column.cast(pa.large_binary()).to_pylist()
    return [value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else value or "" for value in values]
