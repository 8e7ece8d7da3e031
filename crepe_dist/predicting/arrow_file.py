"""Parquet file of predictions, which PyArrow writes in bounded memory.

The columns of a Parquet input are copied in their own types: the input is read a second time beside the predictions.
Other inputs have columns of text.
"""

from __future__ import annotations

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

GROUP_BYTES, GROUP_ROWS = 1 << 23, 1 << 16  # size of a row group
TYPES = {"float64": pa.float64(), "int64": pa.int64(), "object": pa.string()}
Record = list[Any]


def write_parquet(
    target: Path, source: Path | None, columns: Sequence[str], added: Mapping[str, str], groups: Iterable[list[Record]]
) -> None:
    """Write a Parquet file of predictions.

    After an error, the file has the rows of the complete row groups, and can be read.

    Args:
        source: Parquet file of the input, whose columns are copied; ``None`` for inputs in other formats.
        columns: names of the columns of text in the records; empty if there is a ``source``.
        added: names and types of the columns that the predictions add.
        groups: groups of records. A record has the line number of a row, the values of ``columns``, and the values of
            ``added``.

    Raises:
        UserError: Two columns have the same name, or ``source`` changed while its rows were classified.
    """
    schema, rows = (pa.schema([(name, pa.string()) for name in columns]), None) if source is None else own_rows(source)
    names = [*schema.names, *added]
    if twice := [name for name in names if names.count(name) > 1]:
        remedy = "rename that column, or use --format csv"
        raise UserError(f"the answers would have two columns {twice[0]!r:.80}", remedy=remedy)
    if rows is not None and not all(field.nullable for field in schema) and any(batch.invalid for batch in rows):
        schema = pa.schema([field.with_nullable(True) for field in schema], schema.metadata)
    for name, kind in added.items():
        schema = schema.append(pa.field(name, TYPES[kind]))
    state = None if source is None else fingerprint(source)
    with parquet.ParquetWriter(target, schema) as writer:
        batches = _text_batches(groups, schema) if rows is None else _beside(rows, groups, schema)
        for table in _grouped(batches, schema):
            writer.write_table(table, row_group_size=table.num_rows)
    if source is not None and fingerprint(source) != state:
        raise UserError(f"{source} has changed while its rows were classified", remedy="run the command again")


def _text_batches(groups: Iterable[list[Record]], schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    for records in filter(None, groups):
        yield pa.RecordBatch.from_arrays(_arrays(records, schema), schema=schema)


def _arrays(records: Sequence[Record], schema: pa.Schema) -> list[pa.Array]:
    """Convert the values of records, without their lines, to the last columns of a schema."""
    columns = list(zip(*records))[1:]
    kinds = schema.types[len(schema) - len(columns) :]
    return [_array(values, kind) for values, kind in zip(columns, kinds)]


def _array(values: Sequence[Any], kind: pa.DataType) -> pa.Array:
    """Convert values to an array; lone surrogates, which UTF-8 cannot encode, become question marks."""
    try:
        return pa.array(values, kind)
    except UnicodeEncodeError:
        return pa.array([value.encode("utf-8", "replace").decode() for value in values], kind)


def _beside(rows: ParquetReader, groups: Iterable[list[Record]], schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    """Yield the rows of a Parquet file that have a record, with their predictions."""
    records = chain.from_iterable(groups)
    record, lost = next(records, None), 0
    for batch in rows:
        end = batch.line + (batch.invalid[0].lines if batch.invalid else batch.content.num_rows)
        while record is not None and record[0] < end:
            found: list[Record] = []
            while record is not None and record[0] < end and len(found) < GROUP_ROWS:
                found.append(record)
                record = next(records, None)
            lost += len(found) if batch.invalid else 0
            own = _own_columns(batch, found, schema)
            yield pa.RecordBatch.from_arrays([*own, *_arrays(found, schema)], schema=schema)
    if lost:
        what = f"{pluralize(lost, 'row')} could not be read again: their own columns are null"
        warnings.warn(f"{what}, and their column 'problem' has the reason", stacklevel=2)


def _own_columns(batch: RawBatch, records: Sequence[Record], schema: pa.Schema) -> list[pa.Array]:
    """Return the input's columns of the rows of records.

    If the rows cannot be read again, the columns are null, and the records get a problem.
    """
    if not batch.invalid:
        content: pa.RecordBatch = batch.content
        places = [record[0] - batch.line for record in records]
        if len(places) == content.num_rows:
            return list(content.columns)
        try:
            return list(content.take(pa.array(places)).columns)
        except pa.ArrowNotImplementedError:  # views of text, for example
            return list(pa.concat_batches([content.slice(place, 1) for place in places]).columns)
    for record in records:
        record[-1] = record[-1] or f"line {record[0]}: {batch.invalid[0].reason}"
    answers = len(records[0]) - 1
    return [pa.nulls(len(records), kind) for kind in schema.types[: len(schema) - answers]]


def _grouped(batches: Iterable[pa.RecordBatch], schema: pa.Schema) -> Iterator[pa.Table]:
    """Collect batches into row groups."""
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
