"""Uncompressed sizes of the pages of a Parquet file, from the page headers.

Arrow allocates the memory that a page's header asks for, and the sizes in the file's footer may be wrong. The headers
are Thrift structs in the compact protocol (``PageHeader`` in parquet-format's ``parquet.thrift``), with the needed
numbers in their first fields.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO, NamedTuple

MAX_PAGE = 1 << 28  # bytes; some writers make a single page per row group
ROWS = 256  # default number of rows to read at a time
MAX_DICTIONARY_BYTES = 1 << 26  # limit on a dictionary's largest entry times the rows read at a time
USUAL_PAGE = 1 << 20  # bytes
USUAL_HEADER = 1 << 14  # bytes
MAX_HEADER = 1 << 22  # bytes; a header may contain the minimum and maximum of the page
MAX_DEPTH = 8
KIND, UNCOMPRESSED, COMPRESSED = 1, 2, 3  # fields of PageHeader
DETAILS = {0: 5, 2: 7, 3: 8}  # page kind (data, dictionary, data v2): field of PageHeader with its own header
DICTIONARY = 2
BOOLS, BYTE, INTEGERS, DOUBLE, BINARY, LISTS, STRUCT = (1, 2), 3, (4, 5, 6), 7, 8, (9, 10), 12


class Page(NamedTuple):
    """Header of a page: its kind (a key of ``DETAILS``), number of values, and decoded size in bytes."""

    kind: int
    values: int
    uncompressed: int


def rows_at_a_time(stream: BinaryIO, group: Any, columns: Sequence[str]) -> int:
    """Return how many rows of a row group can be read together within the memory of a few pages.

    Raises:
        ValueError: A page is larger than ``MAX_PAGE``, or a header is invalid.
    """
    rows = ROWS
    for number in range(group.num_columns):
        chunk = group.column(number)
        if chunk.path_in_schema not in columns:
            continue
        for page in _pages(stream, chunk):
            if page.uncompressed > MAX_PAGE:
                raise ValueError(f"a page of {page.uncompressed:,} bytes; the limit is {MAX_PAGE:,}")
            if page.kind == DICTIONARY:
                rows = min(rows, MAX_DICTIONARY_BYTES // max(1, page.uncompressed))
            elif page.uncompressed > USUAL_PAGE:
                rows = min(rows, page.values)  # avoid decoding many large pages at a time
    return max(1, rows)


def _pages(stream: BinaryIO, chunk: Any) -> Iterator[Page]:
    starts = [chunk.data_page_offset]
    if chunk.dictionary_page_offset:
        starts.append(chunk.dictionary_page_offset)
    position = min(starts)
    end = position + chunk.total_compressed_size
    size = stream.seek(0, 2)
    if not 0 < position <= end <= size:
        raise ValueError("a column lies outside the file")
    while position < end:
        stream.seek(position)
        header = _header(stream)
        kind, uncompressed, compressed = (header.number(field) for field in (KIND, UNCOMPRESSED, COMPRESSED))
        yield Page(kind, header.values(DETAILS.get(kind, 0)), uncompressed)
        position += header.position + compressed


def _header(stream: BinaryIO) -> _Struct:
    data = stream.read(USUAL_HEADER)
    try:
        return _Struct(data)
    except IndexError:
        data += stream.read(MAX_HEADER)
    try:
        return _Struct(data)
    except IndexError:
        raise ValueError("a page header does not end") from None


class _Struct:
    """Parser of a Thrift struct: keeps integers and nested structs by field id, and skips other fields.

    Raises:
        IndexError: The data end before the struct.
        ValueError: The data are not a valid struct.
    """

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.position = 0
        self.fields = self._struct(0)

    def number(self, field: int) -> int:
        """Return a required, non-negative integer."""
        number = self.fields.get(field)
        if not isinstance(number, int) or number < 0:
            raise ValueError("a page header has no size")
        return number

    def values(self, field: int) -> int:
        """Return the first integer of a nested struct; 0 if it does not exist."""
        within = self.fields.get(field)
        number = within.get(1) if isinstance(within, dict) else None
        return number if isinstance(number, int) else 0

    def _struct(self, depth: int) -> dict[int, Any]:
        if depth > MAX_DEPTH:
            raise ValueError("a page header is nested too deeply")
        fields: dict[int, Any] = {}
        field = 0
        while head := self._byte():
            step, kind = head >> 4, head & 15
            field = field + step if step else self._integer()
            fields[field] = self._value(kind, depth)
        return fields

    def _value(self, kind: int, depth: int) -> Any:
        if kind in BOOLS:
            return None
        if kind in INTEGERS:
            return self._integer()
        if kind == STRUCT:
            return self._struct(depth + 1)
        if kind in (BYTE, DOUBLE, BINARY):
            self._skip(1 if kind == BYTE else 8 if kind == DOUBLE else self._varint())
        elif kind in LISTS:
            head = self._byte()
            count = head >> 4 if head >> 4 < 15 else self._varint()
            for _ in range(count):
                self._skip(1) if head & 15 in BOOLS else self._value(head & 15, depth + 1)
        else:
            raise ValueError("a page header contains an invalid type")
        return None

    def _byte(self) -> int:
        self.position += 1
        return self._data[self.position - 1]

    def _skip(self, length: int) -> None:
        self.position += length
        if self.position > len(self._data):
            raise IndexError

    def _varint(self) -> int:
        result = shift = 0
        while True:
            byte = self._byte()
            result |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return result
            if shift > 63:
                raise ValueError("a page header contains an endless number")

    def _integer(self) -> int:
        number = self._varint()
        return number >> 1 ^ -(number & 1)
