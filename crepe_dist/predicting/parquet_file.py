"""Parquet files of answers, made from CSV in constant memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Callable

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from crepe_dist.errors import UserError

BLOCK = 1 << 25  # bytes of CSV read at once; a record has to fit


def types_of(path: Path) -> dict[str, Any]:
    """Return the types of the columns of a Parquet file whose values have the same text in CSV."""
    types = {}
    for column in pq.read_schema(path):
        kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
        tests = (
            *(pa.types.is_integer, pa.types.is_boolean, pa.types.is_date, pa.types.is_timestamp, pa.types.is_decimal),
            *(pa.types.is_float32, pa.types.is_float64),
        )
        if any(test(kind) for test in tests):
            types[column.name] = kind
    return types


def converter(
    columns: Sequence[str], types: Mapping[str, Any], answers: Mapping[str, str]
) -> Callable[[Path, Path], None]:
    """Return the function that writes a Parquet file from a CSV file without header.

    Args:
        columns: names of the columns of the input.
        types: types of some; the others are text.
        answers: names and types of the columns after them.

    Raises:
        UserError: two columns have the same name.
    """
    names = [*columns, *answers]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UserError(
            f"the answers would have two columns {twice!r:.80}", remedy="rename that column, or use --format csv"
        )
    kinds = {"float64": pa.float64(), "int64": pa.int64(), "object": pa.string()}
    own = {name: types.get(name, pa.string()) for name in columns}
    return partial(_convert, {**own, **{name: kinds[kind] for name, kind in answers.items()}})


def _convert(types: dict[str, Any], source: Path, target: Path) -> None:
    schema = pa.schema(list(types.items()))
    with pq.ParquetWriter(target, schema) as writer:
        if not source.stat().st_size:
            return
        reader = pa.csv.open_csv(
            source,
            pa.csv.ReadOptions(use_threads=False, block_size=BLOCK, column_names=list(types)),
            pa.csv.ParseOptions(newlines_in_values=True),
            pa.csv.ConvertOptions(column_types=types, null_values=[""], strings_can_be_null=False),
        )
        for batch in reader:
            writer.write_batch(batch)
