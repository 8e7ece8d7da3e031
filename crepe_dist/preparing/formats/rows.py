"""Types and interfaces common to all formats: rows, unusable rows, blocks, parsers and cutters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

BLOCK = 1 << 21  # bytes that are read and parsed together
MAX_RECORD = 1 << 20  # bytes per row; longer ones usually come from a broken file
EXCERPT = 80  # characters
STRIPE = 1024  # lines
EMPTY = "empty text"
FROM_WINDOWS = 'save the file as "CSV UTF-8" in Excel, or: iconv -f WINDOWS-1252 -t UTF-8 FILE > new.csv'


class Row(NamedTuple):
    """A document.

    Attributes:
        line: its first line, from 1; its row number in formats without lines.
        label: label as read.
        text: text as read.
        cells: values of all columns, if requested.
        weight: weight as read, if there is a column of weights.
        id: id as read; empty if there is no column of ids.
    """

    line: int
    label: str
    text: str
    cells: tuple[str, ...] = ()
    weight: str | None = None
    id: str = ""


class BadRow(NamedTuple):
    """One or more unusable lines.

    Attributes:
        line: number of the first line.
        reason: reason, for the quarantine.
        excerpt: start of the first line.
        lines: number of lines.
    """

    line: int
    reason: str
    excerpt: str
    lines: int = 1


class Block(NamedTuple):
    """A piece of a file that can be parsed on its own.

    Attributes:
        data: input of the format's ``parse``.
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


@dataclass(frozen=True)
class Share:
    """One machine's share of the lines of a file, in alternating stripes.

    Attributes:
        index: number of the share, from 0.
        of: number of shares.
    """

    index: int = 0
    of: int = 1

    def owns(self, line: int) -> bool:
        """Tell whether a line belongs to this share."""
        return self.of == 1 or line // STRIPE % self.of == self.index


class Parsed(NamedTuple):
    """Content of a block.

    Attributes:
        rows: documents. Bytes that are not UTF-8 may appear as lone surrogates.
        bad: unusable lines.
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
        """Put back the blocks taken last."""

    def sha256(self) -> str:
        """Return the SHA-256 of the whole file, once it has been read."""

    def close(self) -> None:
        """Close the file."""


class Parser(Protocol):
    """Parser of blocks; small, because it is sent to a worker with each block."""

    @property
    def name(self) -> str:
        """Name of the format."""

    @property
    def reads(self) -> str:
        """Description of the columns of label and text, for the report."""

    @property
    def texts(self) -> tuple[str, ...]:
        """Names of the columns that make up the text; empty if columns have no names."""

    @property
    def kept(self) -> tuple[str, ...]:
        """Names of the columns in ``Row.cells``."""

    def parse(self, block: Block, share: Share) -> Parsed:
        """Parse the lines of a block that belong to the share."""


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
