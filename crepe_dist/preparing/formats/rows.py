"""What every format yields: rows, rows that cannot be used, and blocks on the way to them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

TITLE_JOINT = " | "
BLOCK = 1 << 21  # bytes that are read and parsed together
MAX_RECORD = 1 << 20  # bytes of one row; a longer one is a broken file more often than a text
EXCERPT = 80
STRIPE = 1024  # lines


class Row(NamedTuple):
    """One document, and the line (of a table: the row) on which it ends, from 1.

    Args:
        cells: the values of all columns, where they are to be kept.
    """

    line: int
    label: str
    text: str
    cells: tuple[str, ...] = ()


class BadRow(NamedTuple):
    """Lines that cannot be used: where they end, why, how they begin, and how many they are."""

    line: int
    reason: str
    excerpt: str
    lines: int = 1


class Block(NamedTuple):
    """A piece of a file that can be parsed by itself.

    Args:
        data: what the format's ``parse`` takes.
        line: number of its first line.
        final: nothing follows it in the file.
        bad: what could not even be read.
        full: no more can be read together with it; what is open from its first line to its end is broken.
    """

    data: bytes
    line: int
    final: bool
    bad: tuple[BadRow, ...] = ()
    full: bool = False


@dataclass(frozen=True)
class Share:
    """The lines of a file that one of several machines reads: stripes in turn."""

    index: int = 0
    of: int = 1

    def owns(self, line: int) -> bool:
        return self.of == 1 or line // STRIPE % self.of == self.index


class Parsed(NamedTuple):
    """What is in a block. ``consumed`` bytes of it, ``lines`` lines, were used; the next block begins after them.

    Bytes that are not UTF-8 may stand in the texts as lone surrogates.
    """

    rows: list[Row]
    bad: list[BadRow]
    consumed: int
    lines: int


class Cutter(Protocol):
    """One opened file on its way into blocks.

    Attributes:
        position: bytes of the file that were read.
    """

    @property
    def position(self) -> int: ...

    def take(self) -> Block | None:
        """The next block; ``None`` at the end."""

    def put_back(self, blocks: Sequence[Block]) -> None:
        """Takes back the blocks that were taken last."""

    def sha256(self) -> str:
        """Of the whole file, at its end."""

    def close(self) -> None: ...


class Parser(Protocol):
    """What a worker does to a block; small, and sent to it with each."""

    @property
    def name(self) -> str: ...

    @property
    def reads(self) -> str:
        """What is label and what is text, for the report."""

    @property
    def kept(self) -> tuple[str, ...]:
        """Names of the columns whose values are in the ``cells`` of rows."""

    def parse(self, block: Block, share: Share) -> Parsed:
        """The rows of a block whose lines are of the share."""


def join_title(title: str, text: str) -> str:
    """``title | text``, as the notebook joins summary and review; the text alone without a title."""
    return f"{title}{TITLE_JOINT}{text}" if title else text


def join(columns: list[str]) -> str:
    return columns[0] if len(columns) == 1 else TITLE_JOINT.join(column for column in columns if column.strip())


def check_text(text: str) -> bytes:
    """A document's text in UTF-8; a ``ValueError`` says why it cannot be used."""
    if not text or text.isspace():
        raise ValueError("empty text")
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError:
        raise ValueError("not UTF-8") from None


def excerpt(text: str | bytes, length: int = EXCERPT) -> str:
    """The beginning of what could not be used, as text that any file can hold."""
    if isinstance(text, bytes):
        return text[:length].decode("utf-8", "replace")
    return text[:length].encode("utf-8", "replace").decode()


def too_long() -> str:
    return f"longer than {MAX_RECORD:,} bytes"
