"""Types common to all formats: rows, unusable rows, batches and open files."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar

from crepe_dist.data.text_preprocessing import EMPTY, FIELD_SEPARATOR
from crepe_dist.errors import UserError

if TYPE_CHECKING:
    from crepe_dist.preparing.formats.columns import ResolvedColumns

Text = TypeVar("Text", str, bytes)
BATCH_BYTES = 1 << 21  # bytes that are parsed together
MAX_RECORD = 1 << 20  # bytes per row; longer ones usually come from a broken file
MAX_EXPANSION = 200  # of gzip's largest, 1,032; texts compress 3 to 20 times
MIN_EXPANSION_BYTES = 1 << 30  # bytes to which any file may expand
EXCERPT = 80  # characters
DETECTION_ROWS = 200  # rows from which a header and columns are detected
NOT_UTF_8 = "not UTF-8"
TOO_LONG = f"longer than {MAX_RECORD:,} bytes"
ENCODING_REMEDY = 'save the file as "CSV UTF-8" in Excel, or name its encoding, such as --encoding cp1252'


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


class InvalidRow(NamedTuple):
    """One or more unusable lines from ``line`` on, with the reason and the start of the first line."""

    line: int
    reason: str
    excerpt: str
    lines: int = 1


class RawBatch(NamedTuple):
    """Rows that a worker parses together.

    Attributes:
        line: number of the first row, or of its first line.
        content: what the parser of the format takes, such as lines in UTF-8 or an Arrow batch.
        size: bytes after decompression.
        bad: rows that could not be read.
    """

    line: int
    content: Any
    size: int
    invalid: tuple[InvalidRow, ...] = ()


class Parsed(NamedTuple):
    """Rows of a batch. Bytes that are not UTF-8 may appear as lone surrogates."""

    rows: list[Row]
    invalid: list[InvalidRow]


class SourceFile(Protocol):
    """A file, or a folder of documents, that batches are read from.

    Attributes:
        encoding: encoding of the text; empty for formats that define it.
        doubt: warning that the encoding is probably wrong; empty if nothing says so.
    """

    encoding: str
    encoding_warning: str

    @property
    def position(self) -> int:
        """Number of bytes read so far."""

    def sha256(self) -> str:
        """Return the SHA-256 of the whole file."""

    def close(self) -> None:
        """Close the file."""


class OpenFile(NamedTuple):
    """A file that is read, in its format.

    Attributes:
        name: its name in errors.
        parse: parser of a batch, which is sent to a worker with it.
        reads: description of the columns read, for the report.
        texts: names of the columns of the text; empty if columns have no names.
        columns: all columns; ``None`` in formats without them.
        kept: names of the columns in ``Row.cells``.
        delimiter: delimiter of a CSV file; a comma for other formats.
        hint: names of the columns that are not read, with the flags that would read them; empty if there are none.
    """

    name: str
    file: SourceFile
    batches: Iterable[RawBatch]
    parse: Callable[[RawBatch], Parsed]
    format: str
    columns_description: str = ""
    texts: tuple[str, ...] = ()
    kept_columns: tuple[str, ...] = ()
    delimiter: str = ","
    columns: ResolvedColumns | None = None
    hint: str = ""

    @property
    def label(self) -> str:
        """Name of the column of the label; empty if there is none, or if columns have no names."""
        if not self.texts or self.columns is None or self.columns.label is None:
            return ""
        return self.columns.names[self.columns.label]

    def iter_checked(self) -> Iterator[RawBatch]:
        """Yield the batches; refuse data that were made to expand before they fill the disk or memory.

        Warn once if the encoding is probably wrong.
        """
        expanded, is_warned = 0, False
        for batch in self.batches:
            if self.file.encoding_warning and not is_warned:
                is_warned = True
                warnings.warn(f"{self.name} {self.file.encoding_warning}", stacklevel=2)
            expanded += batch.size
            limit = max(MIN_EXPANSION_BYTES, MAX_EXPANSION * self.file.position)
            if expanded > limit:
                raise UserError(
                    f"{self.name} expands to more than {limit / 1e9:,.1f} GB",
                    f"that is {MAX_EXPANSION} times what was read of it",
                    "if it is meant to, decompress it first, as gunzip does",
                )
            yield batch

    def iter_parsed(self) -> Iterator[Parsed]:
        """Parse all batches in this process, and close the file."""
        for batch in self.iter_checked():
            parsed = self.parse(batch)
            yield parsed._replace(invalid=[*parsed.invalid, *batch.invalid])
        self.file.close()


def parse_rows(contents: Iterable[tuple[int, Text]], parse: Callable[[int, Text], Row | None]) -> Parsed:
    """Parse the contents of rows, given with their numbers; ``ValueError`` makes a row unusable, ``None`` skips it."""
    result = Parsed([], [])
    for number, content in contents:
        try:
            if (row := parse(number, content)) is not None:
                result.rows.append(row)
        except ValueError as error:
            result.invalid.append(InvalidRow(number, str(error), excerpt(content)))
    return result


def check_text(text: str) -> bytes:
    """Encode a row's text, and the values after it, as UTF-8; raise ``ValueError`` if it is unusable."""
    if not text.partition(FIELD_SEPARATOR)[0].strip():
        raise ValueError(EMPTY)
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError:
        raise ValueError(NOT_UTF_8) from None


def excerpt(text: str | bytes, length: int = EXCERPT) -> str:
    """Return the first characters of unusable data as valid text."""
    if isinstance(text, bytes):
        return text[:length].decode("utf-8", "replace")
    return text[:length].encode("utf-8", "replace").decode()
