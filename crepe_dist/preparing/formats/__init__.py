"""Types common to all formats: rows, invalid rows, batches and open files."""

import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar

from crepe_dist.data.text_preprocessing import EMPTY
from crepe_dist.errors import UserError

if TYPE_CHECKING:
    from crepe_dist.preparing.formats.columns import ResolvedColumns

Text = TypeVar("Text", str, bytes)
# Size of a batch in bytes. A worker parses one batch at a time.
BATCH_BYTES = 1 << 21
# Maximum size of a row in bytes. Longer rows usually come from a broken file.
MAX_RECORD = 1 << 20
# Maximum ratio of the decompressed size to the compressed size. gzip can reach 1,032. Texts usually reach 3 to 20.
MAX_EXPANSION = 200
# Decompressed size in bytes that is always allowed.
MIN_EXPANSION_BYTES = 1 << 30
# Length of the excerpt of an invalid row, in characters.
EXCERPT = 80
# Number of rows at the start of a file that are used to detect the header and the columns.
DETECTION_ROWS = 200
# Reasons why a row is invalid.
NOT_UTF_8 = "not UTF-8"
TOO_LONG = f"longer than {MAX_RECORD:,} bytes"
# Separator between the values of the group columns of a row.
FIELD_SEPARATOR = "\x1f"
# Remedy for files that are not UTF-8.
ENCODING_REMEDY = 'save the file as "CSV UTF-8" in Excel, or name its encoding, such as --encoding cp1252'


class Row(NamedTuple):
    """Row of a source before validation.

    Attributes:
        line: Number of the row's first line, counted from 1. In formats without lines, the number of the row.
        label: Label as it is written in the source.
        text: Text.
        cells: Values of all columns, if requested.
        weight: Weight as it is written in the source. ``None`` if there is no weight column.
        id: Id as it is written in the source. Empty if there is no id column.
        groups: Values of the group columns, separated by ``FIELD_SEPARATOR``. Empty if there are no such columns. A
            tuple of values would make garbage collection slow.
    """

    line: int
    label: str
    text: str
    cells: tuple[str, ...] = ()
    weight: str | None = None
    id: str = ""
    groups: str = ""


class InvalidRow(NamedTuple):
    """Invalid row.

    Attributes:
        line: Number of the first line.
        reason: Reason why the row is invalid.
        excerpt: Start of the first line.
        lines: Number of lines.
    """

    line: int
    reason: str
    excerpt: str
    lines: int = 1


class RawBatch(NamedTuple):
    """Unparsed rows that a worker parses together.

    Attributes:
        line: Number of the first line, or of the first row in formats without lines.
        content: Input of the parser, such as lines in UTF-8 or an Arrow batch.
        size: Size after decompression, in bytes.
        invalid: Rows that could not be read.
    """

    line: int
    content: Any
    size: int
    invalid: tuple[InvalidRow, ...] = ()


class Parsed(NamedTuple):
    """Parsed rows of a batch. Bytes that are not UTF-8 may appear as lone surrogates in the texts."""

    rows: list[Row]
    invalid: list[InvalidRow]


class SourceFile(Protocol):
    """Source of batches: a file, or a folder of documents.

    Attributes:
        encoding: Encoding of the text. Empty for formats that define their encoding.
        encoding_warning: Warning that the encoding is probably wrong. Empty if nothing indicates this.
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
    """Opened source, with the parser of its format.

    Attributes:
        name: Name in messages.
        file: Source of the batches: a file or a folder.
        batches: Unparsed batches.
        parse: Function that parses a batch. It is sent to a worker with the batch.
        format: Name of the format.
        columns_description: Description of the columns that are read, for the report.
        texts: Names of the text columns. Empty if the columns have no names.
        kept_columns: Names of the columns in ``Row.cells``.
        delimiter: Delimiter of a CSV file; a comma for other formats.
        columns: All columns. ``None`` for formats without columns.
        hint: Message that lists the columns that are not read and the flags to read them; empty if all are read.
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
    columns: "ResolvedColumns | None" = None
    hint: str = ""

    @property
    def label(self) -> str:
        """Name of the label column. Empty if there is no such column, or if the columns have no names."""
        if not self.texts or self.columns is None or self.columns.label is None:
            return ""
        return self.columns.names[self.columns.label]

    def iter_checked(self) -> Iterator[RawBatch]:
        """Yield the batches. Warn once if the encoding is probably wrong.

        Raises:
            UserError: The data expands too much, as in a decompression bomb, which could fill the disk or memory.
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
                    f"that is {MAX_EXPANSION} times the size of the compressed data that was read",
                    "if this is intended, decompress the file first, for example with gunzip",
                )
            yield batch

    def iter_rows(self) -> Iterator[Row]:
        """Yield all rows, parsed in this process, and close the file.

        Raises:
            UserError: A row is invalid.
        """
        for batch in self.iter_checked():
            parsed = self.parse(batch)
            for row in (*parsed.invalid, *batch.invalid):
                raise UserError(f"{self.name}:{row.line} cannot be read", row.reason, "correct the line, or delete it")
            yield from parsed.rows
        self.file.close()


def parse_rows(contents: Iterable[tuple[int, Text]], parse: Callable[[int, Text], Row | None]) -> Parsed:
    """Parse rows one by one. Rows that are longer than ``MAX_RECORD`` are invalid.

    Args:
        contents: Number and content of each row.
        parse: Parser of a row. It returns ``None`` to skip the row, and raises ``ValueError`` if the row is invalid.
    """
    result = Parsed([], [])
    for number, content in contents:
        try:
            if len(content) > MAX_RECORD:
                raise ValueError(TOO_LONG)
            if (row := parse(number, content)) is not None:
                result.rows.append(row)
        except ValueError as error:
            result.invalid.append(InvalidRow(number, str(error), excerpt(content)))
    return result


def check_text(text: str) -> bytes:
    """Encode the text of a row as UTF-8.

    Raises:
        ValueError: The text is empty or cannot be encoded.
    """
    if not text.strip():
        raise ValueError(EMPTY)
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError:
        raise ValueError(NOT_UTF_8) from None


def excerpt(text: str | bytes, length: int = EXCERPT) -> str:
    """Return the first characters of invalid data, with invalid parts replaced."""
    if isinstance(text, bytes):
        return text[:length].decode("utf-8", "replace")
    return text[:length].encode("utf-8", "replace").decode()
