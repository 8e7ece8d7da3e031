"""Parquet files, also those that Hugging Face's `datasets` writes."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from crepe_dist.errors import UserError
from crepe_dist.files import sha256
from crepe_dist.preparing.formats.columns import Columns, Wanted, choose_named
from crepe_dist.preparing.formats.parquet_pages import rows_at_a_time
from crepe_dist.preparing.formats.rows import (
    BLOCK,
    MAX_RECORD,
    BadRow,
    Block,
    OpenFile,
    Parsed,
    excerpt,
    too_long,
)
from crepe_dist.preparing.formats.stream import GZIP

MAX_BATCH = 8192


@dataclass(frozen=True)
class Parquet:
    """Parser of Parquet. A block is an Arrow IPC record batch of the columns that are read, as text.

    Args:
        label: class of all rows, if the file name gives it.
        label_names: names of the integers in the label column (``ClassLabel`` of `datasets`), if known.
        kept: positions of the columns whose values go into ``Row.cells``.
        nested: the label may be a list, as JSON.
    """

    columns: Columns
    label: str | None
    label_names: tuple[str, ...] | None
    kept: tuple[int, ...]
    nested: bool

    def parse(self, block: Block) -> Parsed:
        batch = pa.ipc.open_stream(block.data).read_next_batch()
        result = Parsed([], [], len(block.data), batch.num_rows)
        names = None if self.label_names is None else dict(enumerate(self.label_names))
        for number, values in enumerate(zip(*map(_values, batch.columns)), start=block.line):
            row = self.columns.row(number, values, self.label, tuple(values[i] for i in self.kept))
            try:
                if len(row.text) > MAX_RECORD:
                    raise ValueError(too_long())
                if names is not None and row.label:
                    row = row._replace(label=_labels(row.label, names) if self.nested else _label(row.label, names))
                result.rows.append(row)
            except ValueError as error:
                result.bad.append(BadRow(number, str(error), excerpt(row.text)))
        return result


def _label(number: str, names: Mapping[int, str]) -> str:
    """Return the name of a label; raise ``ValueError`` if it has none."""
    if not number.isdecimal() or len(number) > 9 or int(number) not in names:
        raise ValueError(f"unknown label: {number:.40} is not one of 0 to {len(names) - 1}")
    return names[int(number)]


def _labels(cell: str, names: Mapping[int, str]) -> str:
    """Replace the numbers in a label, or in its list, by names."""
    try:
        numbers = json.loads(cell) if cell.startswith("[") else [int(cell)] if cell.isdecimal() else []
        return json.dumps([names.get(number, f"{number}") for number in numbers], ensure_ascii=False)
    except (TypeError, RecursionError):
        raise ValueError(f"unknown label: {cell:.40} is not a list of numbers") from None


class ParquetCutter:
    """Cutter of a Parquet file into record batches of the chosen columns, as text."""

    def __init__(self, path: Path, file: Any, columns: Sequence[str]) -> None:
        self._path = path
        self._file = file
        self._columns = columns
        self._read = 0
        self._blocks = self._batches()

    @property
    def position(self) -> int:
        rows: int = self._file.metadata.num_rows
        return self._path.stat().st_size * self._read // max(1, rows)

    def sha256(self) -> str:
        return sha256(self._path)

    def close(self) -> None:
        self._file.close()

    def take(self) -> Block | None:
        return next(self._blocks, None)

    def put_back(self, blocks: Sequence[Block]) -> None:
        raise NotImplementedError  # blocks are consumed whole

    def _batches(self) -> Iterator[Block]:
        for number in range(self._file.metadata.num_row_groups):
            end = self._read + self._file.metadata.row_group(number).num_rows
            waiting: list[Any] = []
            rows = size = 0
            problem = ""
            try:
                for piece in self._pieces(number):
                    waiting.append(piece)
                    rows, size = rows + piece.num_rows, size + piece.nbytes
                    if rows >= MAX_BATCH or size >= BLOCK:
                        yield self._block(waiting)
                        rows = size = 0
            except (pa.ArrowException, OSError, ValueError) as error:
                problem = f"unreadable: {error}"[:300]
            if waiting:
                yield self._block(waiting)
            if problem:
                start, self._read = self._read + 1, end
                yield Block(b"", start, False, (BadRow(start, problem, "", end + 1 - start),))

    def _pieces(self, group: int) -> Iterator[Any]:
        """Yield a row group in small batches: a file of 1 kB can repeat a value of 1 MB in all its rows."""
        with self._path.open("rb") as stream:
            rows = rows_at_a_time(stream, self._file.metadata.row_group(group), self._columns)
        for batch in self._file.iter_batches(rows, row_groups=[group], columns=self._columns, use_threads=False):
            unpacked = _unpacked(batch, self._columns)
            count = max(1, unpacked.num_rows * BLOCK // max(1, unpacked.nbytes))
            for start in range(0, unpacked.num_rows, count):
                yield unpacked.slice(start, count)

    def _block(self, waiting: list[Any]) -> Block:
        (batch,) = pa.Table.from_batches(waiting).combine_chunks().to_batches()
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, batch.schema) as writer:
            writer.write_batch(batch)
        block = Block(bytes(sink.getvalue()), self._read + 1, False)
        self._read += batch.num_rows
        waiting.clear()
        return block


def open_parquet(
    path: Path, file: str, wanted: Wanted, label: str | None, *, keep: bool = False, nested: bool = False
) -> OpenFile:
    """Open a Parquet file and choose its columns.

    Args:
        keep: keep the values of all columns that can be converted to text in ``Row.cells``.

    Raises:
        UserError: The file is not Parquet, or a wanted column does not exist or is not text.
    """
    with path.open("rb") as stream:
        if stream.read(2) == GZIP:
            raise UserError(f"{file} is gzipped", "Parquet has its own compression", "decompress it first: gunzip")
    try:
        opened = pq.ParquetFile(path, pre_buffer=False)
        schema = opened.schema_arrow
    except (pa.ArrowException, OSError, ValueError) as error:
        raise UserError(
            f"{file} cannot be read as Parquet", str(error)[:300], "check that it is complete, or get it again"
        ) from error
    simple = [field for field in schema if not pa.types.is_nested(field.type) or (nested and _is_list(field.type))]
    names, types = [field.name for field in simple], [field.type for field in simple]
    # Their types tell dates, without reading rows.
    dates = [["2000-01-01" if pa.types.is_temporal(kind) else "" for kind in types]]
    columns = choose_named(file, names, wanted, label_given=label is not None, rows=dates)
    for position in columns.texts:
        kind = types[position]
        kind = kind.value_type if pa.types.is_dictionary(kind) else kind
        if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
            raise UserError(
                f"{file}: column {names[position]!r} is not text",
                f"its type is {kind}",
                "name a text column with --text-column",
            )
    kept = [i for i, kind in enumerate(types) if keep and _is_writable(kind)]
    read = sorted({*columns.used, *kept})
    for name in columns.named(read):
        if names.count(name) > 1:
            raise UserError(f"{file} has several columns named {name!r}", remedy="rename them, or choose others")
    label_names = None if columns.label is None else _label_names(schema, names[columns.label])
    of_batch = columns.moved(read)
    parser = Parquet(of_batch, label, label_names, tuple(map(read.index, kept)), nested)
    cutter = ParquetCutter(path, opened, of_batch.names)
    texts, kept_names = columns.named(columns.texts), columns.named(kept)
    return OpenFile(parser.parse, cutter, "parquet", columns.describe(), texts, kept_names, columns=columns)


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind)) and not pa.types.is_nested(kind.value_type)


def _is_writable(kind: pa.DataType) -> bool:
    """Tell whether Arrow can convert values of a type to text."""
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    try:
        pa.array([], kind).cast(pa.large_string())
    except pa.ArrowException:
        return False
    return True


def _label_names(schema: pa.Schema, column: str) -> tuple[str, ...] | None:
    """Return the class names that `datasets` stores for a ``ClassLabel`` column, if any."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        feature = features[column]
        if isinstance(feature, list):  # a list of labels
            (feature,) = feature
        names = feature.get("feature", feature)["names"]
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError):
        return None
    return tuple(map(str, names)) if isinstance(names, list) else None


def _unpacked(batch: pa.RecordBatch, columns: Sequence[str]) -> pa.RecordBatch:
    arrays = []
    for name in columns:
        array = batch.column(name)
        array = array.dictionary_decode() if pa.types.is_dictionary(array.type) else array
        if _is_list(array.type):
            lists = [None if values is None else json.dumps(values, ensure_ascii=False) for values in array.to_pylist()]
            array = pa.array(lists, pa.large_string())
        if pa.types.is_floating(array.type):  # a label that is NaN is a missing one
            array = pc.if_else(pc.is_nan(array), None, array)
        binary = pa.types.is_binary(array.type) or pa.types.is_large_binary(array.type)
        # Keep binary values as bytes and decode them one by one later, so that an invalid one affects one row only.
        arrays.append(array.cast(pa.large_binary() if binary else pa.large_string()))
    return pa.RecordBatch.from_arrays(arrays, names=[str(i) for i in range(len(arrays))])


def _values(column: pa.Array) -> list[str]:
    try:
        values = column.to_pylist()
    except UnicodeDecodeError:
        values = column.cast(pa.large_binary()).to_pylist()
    return [value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else value or "" for value in values]
