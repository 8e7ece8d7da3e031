"""Types common to all formats: rows, unusable rows, blocks, cutters and open files."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

from crepe_dist.errors import UserError

if TYPE_CHECKING:
    from crepe_dist.preparing.formats.columns import Columns

BLOCK = 1 << 21  # bytes that are read and parsed together
MAX_RECORD = 1 << 20  # bytes per row; longer ones usually come from a broken file
MAX_EXPANSION = 200.0  # of gzip's largest, 1,032; texts compress 3 to 20 times
ALWAYS_ALLOWED = 1 << 30  # bytes to which any file may expand
EXCERPT = 80  # characters
EMPTY = "empty text"
FROM_WINDOWS = 'save the file as "CSV UTF-8" in Excel, or name its encoding, such as --encoding cp1252'


class Row(NamedTuple):
    """A document.

    Attributes:
        line: its first line, from 1; its row number in formats without lines.
        cells: values of all columns, if requested.
        weight: weight as read; ``None`` without a column of weights.
        id: id as read; empty without a column of ids.
    """

    line: int
    label: str
    text: str
    cells: tuple[str, ...] = ()
    weight: str | None = None
    id: str = ""


class BadRow(NamedTuple):
    """One or more unusable lines from ``line`` on, with the reason and the start of the first line."""

    line: int
    reason: str
    excerpt: str
    lines: int = 1


class Block(NamedTuple):
    """A piece of a file that can be parsed on its own.

    Attributes:
        line: number of the first line.
        final: True at the end of the file.
        bad: lines that could not be read.
        full: True if the block cannot be extended, so that a record open from its first line to its end is broken.
    """

    data: bytes
    line: int
    final: bool
    bad: tuple[BadRow, ...] = ()
    full: bool = False


class Parsed(NamedTuple):
    """Content of a block.

    Attributes:
        rows: documents. Bytes that are not UTF-8 may appear as lone surrogates.
        consumed: bytes of the block that were used; the next block starts after them.
        lines: lines of the block that were used.
    """

    rows: list[Row]
    bad: list[BadRow]
    consumed: int
    lines: int


class Cutter(Protocol):
    """An open file that is cut into blocks."""

    @property
    def position(self) -> int:
        """Number of bytes of the file read so far."""

    def take(self) -> Block | None:
        """Return the next block; ``None`` at the end."""

    def put_back(self, blocks: Sequence[Block]) -> None:
        """Put back the blocks taken last, from one whose end was not consumed."""

    def sha256(self) -> str:
        """Return the SHA-256 of the whole file, once it has been read."""

    def close(self) -> None:
        """Close the file."""


Parse = Callable[[Block], Parsed]  # sent to a worker with each block


class OpenFile(NamedTuple):
    """A file that is read, in its format.

    Attributes:
        reads: description of the columns read, for the report.
        texts: names of the columns of the text; empty if columns have no names.
        columns: all columns; ``None`` in formats without them.
        kept: names of the columns in ``Row.cells``.
        delimiter: delimiter of a CSV file; a comma for other formats.
    """

    parse: Parse
    cutter: Cutter
    format: str
    reads: str = ""
    texts: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()
    delimiter: str = ","
    columns: Columns | None = None

    @property
    def label(self) -> str:
        """Name of the column of the label; empty if there is none, or if columns have no names."""
        if not self.texts or self.columns is None or self.columns.label is None:
            return ""
        return self.columns.names[self.columns.label]

    def parsed(self, name: str) -> Iterator[Parsed]:
        """Parse all blocks in this process; ``name`` is that of the file in errors."""
        expanded = 0
        while (block := self.cutter.take()) is not None:
            parsed = self.parse(block) if block.data else Parsed([], [], 0, 0)
            if parsed.consumed < len(block.data):
                self.cutter.put_back([rest_of(block, parsed.consumed, parsed.lines)])
            expanded += parsed.consumed
            check_expansion(name, expanded, self.cutter, MAX_EXPANSION, "write it to a plain file, as gunzip does")
            yield parsed._replace(bad=[*parsed.bad, *block.bad])
        self.cutter.close()


def rest_of(block: Block, consumed: int, lines: int) -> Block:
    """Return the end of a block that a parser did not use."""
    return Block(block.data[consumed:], block.line + lines, False, full=block.full)


def check_expansion(name: str, expanded: int, cutter: Cutter, most: float, remedy: str) -> None:
    """Refuse data that were made to expand, before they fill the disk or memory.

    Args:
        expanded: bytes after decompression, so far.
        most: most of them for a byte of the file.
    """
    limit = max(ALWAYS_ALLOWED, int(most * cutter.position))
    if expanded > limit:
        raise UserError(
            f"{name} expands to more than {limit / 1e9:,.1f} GB",
            f"{cutter.position:,} bytes of it were read, and the limit is {most:g} times as many",
            f"if it is meant to, {remedy}",
        )


def check_text(text: str) -> bytes:
    """Encode a document's text as UTF-8; raise ``ValueError`` if it is unusable."""
    if not text or text.isspace():
        raise ValueError(EMPTY)
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError:
        raise ValueError("not UTF-8") from None


def excerpt(text: str | bytes, length: int = EXCERPT) -> str:
    """Return the first characters of unusable data as valid text."""
    if isinstance(text, bytes):
        return text[:length].decode("utf-8", "replace")
    return text[:length].encode("utf-8", "replace").decode()


def too_long() -> str:
    """Return the reason for rejecting rows longer than ``MAX_RECORD``."""
    return f"longer than {MAX_RECORD:,} bytes"
