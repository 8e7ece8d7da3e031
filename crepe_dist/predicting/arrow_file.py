"""Writer of predictions to a Parquet file. Memory use is bounded.

If the input is a Parquet file, it is read a second time, so that its columns can be copied with their types. The copied
columns of other inputs are strings.
"""

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import parquet

from crepe_dist.errors import UserError
from crepe_dist.files.safe_read import fingerprint
from crepe_dist.formatting import pluralize
from crepe_dist.preparing.formats import RawBatch
from crepe_dist.preparing.formats.parquet import ParquetReader, own_rows

# A row group is written when it has at least this size in bytes, or at least this number of rows.
GROUP_BYTES = 1 << 23
GROUP_ROWS = 1 << 16
TYPES = {"float64": pa.float64(), "int64": pa.int64(), "object": pa.string()}  # Arrow types by pandas type.
Record = list[Any]


def write_parquet(
    target: Path, source: Path | None, columns: Sequence[str], added: Mapping[str, str], groups: Iterable[list[Record]]
) -> None:
    """Write a Parquet file of predictions.

    After an error, the file is readable and contains the row groups that were completed before the error.

    Args:
        target: File to write.
        source: Parquet file of the input. Its columns are copied. ``None`` for inputs in other formats.
        columns: Names of the string columns in the records. Empty if there is a ``source``.
        added: Names and types of the columns that the predictions add.
        groups: Groups of records. A record contains the line number of a row, followed by the values of ``columns`` and
            the values of ``added``.

    Raises:
        UserError: Two columns have the same name, or ``source`` changed while its rows were classified.
    """
    schema, rows = (pa.schema([(name, pa.string()) for name in columns]), None) if source is None else own_rows(source)
    names = [*schema.names, *added]
    if duplicates := [name for name in names if names.count(name) > 1]:
        remedy = "rename that column, or use --format csv"
        raise UserError(f"the output would have two columns {duplicates[0]!r:.80}", remedy=remedy)
    # The copied columns of unreadable rows are null.
    if rows is not None and not all(field.nullable for field in schema) and any(batch.invalid for batch in rows):
        schema = pa.schema([field.with_nullable(True) for field in schema], schema.metadata)
    for name, kind in added.items():
        schema = schema.append(pa.field(name, TYPES[kind]))
    state = None if source is None else fingerprint(source)
    with parquet.ParquetWriter(target, schema) as writer:
        batches = _string_batches(groups, schema) if rows is None else _join(rows, groups, schema)
        for table in _collect_row_groups(batches, schema):
            writer.write_table(table, row_group_size=table.num_rows)
    if source is not None and fingerprint(source) != state:
        raise UserError(f"{source} has changed while its rows were classified", remedy="run the command again")


def _string_batches(groups: Iterable[list[Record]], schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    for records in filter(None, groups):
        yield pa.RecordBatch.from_arrays(_arrays(records, schema), schema=schema)


def _arrays(records: Sequence[Record], schema: pa.Schema) -> list[pa.Array]:
    """Convert records to arrays for the last columns of a schema. The line numbers are omitted."""
    columns = list(zip(*records))[1:]
    kinds = schema.types[len(schema) - len(columns) :]
    return [_array(values, kind) for values, kind in zip(columns, kinds)]


def _array(values: Sequence[Any], kind: pa.DataType) -> pa.Array:
    """Convert values to an array. Replace lone surrogates, which UTF-8 cannot encode, with question marks."""
    try:
        return pa.array(values, kind)
    except UnicodeEncodeError:
        return pa.array([value.encode("utf-8", "replace").decode() for value in values], kind)


def _join(rows: ParquetReader, groups: Iterable[list[Record]], schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    """Join the rows of a Parquet file with the records by line number."""
    records = chain.from_iterable(groups)
    record, num_unreadable = next(records, None), 0
    for batch in rows:
        end = batch.line + (batch.invalid[0].lines if batch.invalid else batch.content.num_rows)
        while record is not None and record[0] < end:
            batch_records: list[Record] = []
            while record is not None and record[0] < end and len(batch_records) < GROUP_ROWS:
                batch_records.append(record)
                record = next(records, None)
            num_unreadable += len(batch_records) if batch.invalid else 0
            copied = _copied_columns(batch, batch_records, schema)
            yield pa.RecordBatch.from_arrays([*copied, *_arrays(batch_records, schema)], schema=schema)
    if num_unreadable:
        what = f"{pluralize(num_unreadable, 'row')} could not be read a second time: their copied columns are null"
        warnings.warn(f"{what}, and their column 'problem' contains the reason", stacklevel=2)


def _copied_columns(batch: RawBatch, records: Sequence[Record], schema: pa.Schema) -> list[pa.Array]:
    """Return the columns of the input for the rows that the records belong to.

    If the rows cannot be read a second time, the columns are null, and the reason is written into the records.
    """
    if not batch.invalid:
        return list(batch.content.slice(records[0][0] - batch.line, len(records)).columns)
    for record in records:
        record[-1] = record[-1] or f"line {record[0]}: {batch.invalid[0].reason}"
    num_added = len(records[0]) - 1
    return [pa.nulls(len(records), kind) for kind in schema.types[: len(schema) - num_added]]


def _collect_row_groups(batches: Iterable[pa.RecordBatch], schema: pa.Schema) -> Iterator[pa.Table]:
    """Combine batches into row groups."""
    waiting: list[pa.RecordBatch] = []
    size = count = 0
    for batch in batches:
        waiting.append(batch)
        size, count = size + batch.nbytes, count + batch.num_rows
        if size >= GROUP_BYTES or count >= GROUP_ROWS:
            yield pa.Table.from_batches(waiting, schema)
            waiting, size, count = [], 0, 0
    if waiting:
        yield pa.Table.from_batches(waiting, schema)
