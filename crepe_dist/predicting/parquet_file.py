"""Parquet files of answers, made from CSV in constant memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Callable

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from crepe_dist.errors import UserError

BLOCK = 1 << 23  # bytes of CSV that become a row group
# Types whose values have the same text in CSV.
KEPT = ("is_integer", "is_boolean", "is_date", "is_timestamp", "is_decimal", "is_float32", "is_float64")
TYPES = {"float64": pa.float64(), "int64": pa.int64(), "object": pa.string()}


def converter(source: str | None, columns: Sequence[str], answers: Mapping[str, str]) -> Callable[[Path, Path], None]:
    """Return the function that writes a Parquet file from a CSV file without header.

    Args:
        source: Parquet file of the input, whose types are kept where CSV can hold them; ``None`` for other formats.
        columns: names of the columns of the input.
        answers: names and types of the columns after them.

    Raises:
        UserError: two columns have the same name.
    """
    names = [*columns, *answers]
    if twice := [name for name in names if names.count(name) > 1]:
        raise UserError(
            f"the answers would have two columns {twice[0]!r:.80}", remedy="rename that column, or use --format csv"
        )
    types = dict.fromkeys(columns, pa.string()) | {name: TYPES[kind] for name, kind in answers.items()}
    for column in pq.read_schema(source) if source else ():
        kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
        if column.name in columns and any(getattr(pa.types, test)(kind) for test in KEPT):
            types[column.name] = kind
    return partial(_convert, types)


def _convert(types: dict[str, Any], source: Path, target: Path) -> None:
    options = pa.csv.ConvertOptions(column_types=types, null_values=[""], strings_can_be_null=False)
    with pq.ParquetWriter(target, pa.schema(list(types.items()))) as writer, source.open("rb") as stream:
        for block in _records(stream):
            # Arrow's own reader of blocks reads 32 of them ahead.
            reading = pa.csv.ReadOptions(use_threads=False, block_size=len(block), column_names=list(types))
            parsing = pa.csv.ParseOptions(newlines_in_values=True)
            writer.write_table(pa.csv.read_csv(pa.py_buffer(block), reading, parsing, options))


def _records(stream: BinaryIO) -> Iterator[bytes]:
    """Yield blocks of whole records. Before a line end inside quotes, there is an odd number of quotes."""
    rest = b""
    while read := stream.read(BLOCK):
        rest += read
        end = rest.rfind(b"\n") + 1
        while rest.count(b'"', 0, end) % 2:
            end = rest.rfind(b"\n", 0, end - 1) + 1
        if end:
            yield rest[:end]
        rest = rest[end:]
