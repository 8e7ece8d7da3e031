"""How large the pages of a Parquet file are when they are unpacked, as each says of itself.

Arrow takes the memory that a page's header asks for, and the sizes in the file's footer need not be true. The headers
are Thrift structs in its compact protocol (``PageHeader`` of parquet-format's ``parquet.thrift``); the numbers that are
wanted stand in its first fields.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO, NamedTuple

MAX_PAGE = 1 << 28  # bytes; some writers make one page of a row group
SLICE = 256  # rows that are read at a time where nothing speaks against it
ROOM = 1 << 26  # bytes that a dictionary's largest entry may take in all rows of a slice
USUAL_PAGE = 1 << 20
HEADER = 1 << 14
LONGEST_HEADER = 1 << 22  # it may hold the least and the greatest value of the page
DEEPEST = 8
KIND, UNPACKED, PACKED = 1, 2, 3  # fields of PageHeader
OF_KIND = {0: 5, 2: 7, 3: 8}  # data, dictionary, data of version 2: the field with what is said of such a page
DICTIONARY = 2
BOOLS, BYTE, INTEGERS, DOUBLE, BINARY, LISTS, STRUCT = (1, 2), 3, (4, 5, 6), 7, 8, (9, 10), 12


class Page(NamedTuple):
    kind: int
    values: int
    unpacked: int


def rows_at_a_time(stream: BinaryIO, group: Any, columns: Sequence[str]) -> int:
    """How many rows of a row group may be read together, so that memory stays within some pages.

    Raises:
        ValueError: a page that is larger than ``MAX_PAGE``, or no page where one should be.
    """
    rows = SLICE
    for number in range(group.num_columns):
        chunk = group.column(number)
        if chunk.path_in_schema not in columns:
            continue
        for page in _pages(stream, chunk):
            if page.unpacked > MAX_PAGE:
                raise ValueError(f"a page of {page.unpacked:,} bytes; {MAX_PAGE:,} are the most that are read")
            if page.kind == DICTIONARY:
                rows = min(rows, ROOM // max(1, page.unpacked))
            elif page.unpacked > USUAL_PAGE:
                rows = min(rows, page.values)  # or a slice would be made of many such pages
    return max(1, rows)


def _pages(stream: BinaryIO, chunk: Any) -> Iterator[Page]:
    starts = [chunk.data_page_offset]
    if chunk.dictionary_page_offset:
        starts.append(chunk.dictionary_page_offset)
    position = min(starts)
    end = position + chunk.total_compressed_size
    size = stream.seek(0, 2)
    if not 0 < position <= end <= size:
        raise ValueError("a column that is not in the file")
    while position < end:
        stream.seek(position)
        header = _header(stream)
        kind, unpacked, packed = (header.number(field) for field in (KIND, UNPACKED, PACKED))
        yield Page(kind, header.values(OF_KIND.get(kind, 0)), unpacked)
        position += header.position + packed


def _header(stream: BinaryIO) -> _Struct:
    data = stream.read(HEADER)
    try:
        return _Struct(data)
    except IndexError:
        data += stream.read(LONGEST_HEADER)
    try:
        return _Struct(data)
    except IndexError:
        raise ValueError("the header of a page does not end") from None


class _Struct:
    """One Thrift struct: its integers and structs by field; the rest is passed over. ``IndexError``: it is cut off."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.position = 0
        self.fields = self._struct(0)

    def number(self, field: int) -> int:
        found = self.fields.get(field)
        if not isinstance(found, int) or found < 0:
            raise ValueError("a page without a size")
        return found

    def values(self, field: int) -> int:
        """The first number of a struct in this one; 0 if there is none."""
        within = self.fields.get(field)
        found = within.get(1) if isinstance(within, dict) else None
        return found if isinstance(found, int) else 0

    def _struct(self, depth: int) -> dict[int, Any]:
        if depth > DEEPEST:
            raise ValueError("the header of a page is nested too deeply")
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
            raise ValueError("the header of a page holds something that does not belong there")
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
                raise ValueError("the header of a page holds a number without end")

    def _integer(self) -> int:
        number = self._varint()
        return number >> 1 ^ -(number & 1)
