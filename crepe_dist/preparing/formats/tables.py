"""Readers of CSV files, TSV files and Excel workbooks, with or without a header line."""

import csv
import io
import warnings
import zipfile
from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any, BinaryIO

from crepe_dist.errors import UserError
from crepe_dist.files.csv_cells import has_escaped_cells, unescape_cell
from crepe_dist.files.safe_read import sha256
from crepe_dist.preparing.formats import (
    BATCH_BYTES,
    DETECTION_ROWS,
    ENCODING_REMEDY,
    MAX_RECORD,
    TOO_LONG,
    InvalidRow,
    OpenFile,
    Parsed,
    RawBatch,
    excerpt,
)
from crepe_dist.preparing.formats.columns import (
    ColumnSpec,
    ResolvedColumns,
    choose_columns,
    count_rows_above_header,
    is_header,
    may_be_header,
)
from crepe_dist.preparing.formats.lines import LineReader, number_lines

# Maximum number of lines of a record with invalid quoting. The record is skipped up to the line where the number of
# quotes is even. If this line is farther away than this maximum, only the first line is skipped, so that one stray
# quote does not make the rest of the file invalid.
BROKEN_LINES = 50
# Delimiters that can be detected in a "CSV" file.
DELIMITERS = ",;\t|"
# Maximum number of rows in an Excel sheet. openpyxl yields a blank row for each row number that is missing.
MAX_ROWS = 1 << 20
# Number of rows of a sheet in a batch.
SHEET_ROWS = 256
# Maximum size of a workbook after decompression, in bytes.
MAX_WORKBOOK_BYTES = 1 << 29
# Maximum number of cells in a sheet. openpyxl fills each row with empty cells up to its last cell, so a small file can
# have very many cells. A workbook of ``MAX_WORKBOOK_BYTES`` has fewer non-empty cells than this.
MAX_CELLS = 1 << 25
# Maximum number of strings in a workbook, which allows one string per row of a sheet. openpyxl keeps all strings in
# memory.
MAX_STRINGS = 1 << 20
# Maximum number of XML tags in a row, in a string, or in a part of the workbook that is parsed as a whole.
MAX_TAGS = 1 << 20
SAVE_AS_CSV = "save the sheet as CSV UTF-8"
# Line number and fields of a row.
NumberedFields = tuple[int, list[str]]


def parse_table(
    kind: str,
    columns: ResolvedColumns,
    label: str | None,
    delimiter: str,
    keep_cells: bool,
    is_escaped: bool,
    batch: RawBatch,
) -> Parsed:
    """Parse a batch of rows from a table. The batch contains either lines, or rows that are already split into fields.

    Args:
        kind: Format: ``csv``, ``tsv`` or ``xlsx``.
        columns: Columns to read.
        label: Class of all rows, if it is given by the file name.
        delimiter: Field delimiter.
        keep_cells: If True, ``Row.cells`` contains the values of all columns.
        is_escaped: True if this package wrote the file and escaped its fields against formula injection.
    """
    result = Parsed([], [])
    rows, width = batch.content, len(columns.names)
    if isinstance(rows, bytes) and kind == "csv":
        rows, result.invalid[:], _ = _split_csv(_split_lines(rows), delimiter, batch.line)
    elif isinstance(rows, bytes):
        rows = _split_tsv(number_lines(batch))
    for line, fields in rows:
        if kind == "xlsx":  # ``ExcelReader`` removes the empty fields at the end of a row.
            fields += [""] * (width - len(fields))
        if sum(map(len, fields)) > MAX_RECORD:
            reason = TOO_LONG
        elif len(fields) != width:
            reason = f"wrong columns: {len(fields)} instead of {width}"
        else:
            fields = list(map(unescape_cell, fields)) if is_escaped else fields
            result.rows.append(columns.make_row(line, fields, label, tuple(fields) if keep_cells else ()))
            continue
        result.invalid.append(InvalidRow(line, reason, excerpt(delimiter.join(fields))))
    return result


def _iter_csv_records(batches: Iterable[RawBatch], delimiter: str) -> Iterator[RawBatch]:
    """Yield batches of whole records of a CSV file.

    A record may span multiple lines. Lines with quotes are parsed here to find the ends of the records. The parser
    follows the strict rules of RFC 4180, because under lenient rules a stray quote would join many rows. The workers
    split the records into fields.
    """
    rest, first = b"", 1
    for batch in chain(batches, [RawBatch(0, b"", 0)]):
        if not rest and b'"' not in batch.content:
            yield batch
            continue
        first = first if rest else batch.line
        data = rest + batch.content
        lines = _split_lines(data)
        rows, bad, used = _split_csv(lines, delimiter, first, is_last=not batch.content)
        rest = "".join(lines[used:]).encode("utf-8", "surrogateescape")
        yield RawBatch(first, rows if bad else data[: len(data) - len(rest)], batch.size, (*bad, *batch.invalid))
        first += used


def _split_lines(data: bytes) -> list[str]:
    return list(io.StringIO(data.decode("utf-8", "surrogateescape"), newline="\n"))


def _split_csv(
    lines: Sequence[str], delimiter: str, first: int, *, is_last: bool = True
) -> tuple[list[NumberedFields], list[InvalidRow], int]:
    """Divide lines into records and fields.

    Args:
        first: Number of the first line.
        is_last: True if the file ends with these lines. If it is False, an incomplete record at the end is not parsed.

    Returns:
        The rows, the invalid rows, and the number of parsed lines.
    """
    csv.field_size_limit(2 * MAX_RECORD)
    rows: list[NumberedFields] = []
    bad: list[InvalidRow] = []
    start = 0  # Index of the first line of the current record.
    while start < len(lines):
        begin, left = start, map(lines.__getitem__, range(start, len(lines))) if start else lines
        reader = csv.reader(left, delimiter=delimiter, strict=True)
        try:
            for fields in reader:
                if fields:
                    rows.append((first + start, fields))
                start = begin + reader.line_num
        except csv.Error as error:
            skipped = _count_broken_lines(lines[start : start + BROKEN_LINES])
            at_end = begin + reader.line_num == len(lines) or not skipped
            if not is_last and at_end and sum(map(len, lines[start:])) <= 2 * MAX_RECORD:
                break
            bad.append(
                InvalidRow(first + start, f"not CSV: {error}", excerpt(lines[start].rstrip("\r\n")), skipped or 1)
            )
            start += skipped or 1
    return rows, bad, start


def _count_broken_lines(lines: Sequence[str]) -> int:
    """Return the number of lines in the broken record at the start, or 0 if more lines are needed to decide."""
    quotes = 0
    for count, line in enumerate(lines, start=1):
        quotes += line.count('"')
        if quotes % 2 == 0:
            return count
    return 1 if len(lines) >= BROKEN_LINES else 0


class ExcelReader:
    """Reader of the first sheet of an Excel workbook, in bounded memory.

    Attributes:
        first_rows: First non-empty rows with their row numbers.

    Raises:
        UserError: The file is not a workbook, is damaged, or expands too much.
    """

    encoding = encoding_warning = ""

    def __init__(self, path: Path, name: str) -> None:
        self._path, self._name = path, name
        self._rows = self._read()
        self.first_rows = list(islice(self._rows, DETECTION_ROWS))
        self.position = path.stat().st_size

    def sha256(self) -> str:
        return sha256(self._path)

    def close(self) -> None:
        self._rows.close()

    def skip_lines(self, last: int) -> None:
        """Skip the rows up to and including the row with the number ``last``."""
        self.first_rows = [row for row in self.first_rows if row[0] > last]

    def __iter__(self) -> Iterator[RawBatch]:
        rows = chain(self.first_rows, self._rows)
        while content := list(islice(rows, SHEET_ROWS)):
            yield RawBatch(content[0][0], content, 0)

    def _read(self) -> Generator[NumberedFields, None, None]:
        try:
            with zipfile.ZipFile(self._path) as archive:  # zipfile never returns more bytes than these sizes.
                size = sum(member.file_size for member in archive.infolist())
            if size > MAX_WORKBOOK_BYTES:
                raise UserError(
                    f"{self._name} expands to {size:,} bytes",
                    f"the limit is {MAX_WORKBOOK_BYTES:,} bytes",
                    SAVE_AS_CSV,
                )
            with self._path.open("rb") as stream:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # openpyxl warns about styles.
                    archive, book = _open_workbook(stream, self._name)
                sheet, left = book.worksheets[0], MAX_CELLS
                sheet.reset_dimensions()  # The dimensions in the file may be wrong.
                for number, row in enumerate(sheet.iter_rows(values_only=True), 1):
                    if number > MAX_ROWS:
                        raise ValueError(f"it has more than {MAX_ROWS:,} rows")
                    archive.tags, left = 0, left - len(row)
                    if left < 0:
                        raise UserError(
                            f"{self._name} has more than {MAX_CELLS:,} cells, and most of them are empty",
                            f"row {number:,} extends to column {len(row):,} of the sheet",
                            f"delete the columns to the right of the table, or {SAVE_AS_CSV}",
                        )
                    cells = ["" if cell is None else str(cell) for cell in row]
                    while cells and not cells[-1]:
                        cells.pop()
                    if cells:
                        yield number, cells
        except UserError:
            raise
        except Exception as error:  # openpyxl may raise any exception for a damaged file.
            why = f"{type(error).__name__}: {error}"[:300]
            raise UserError(f"{self._name} cannot be read as a workbook", why, SAVE_AS_CSV) from error


class _Archive(zipfile.ZipFile):
    """Zip archive of a workbook that limits the number of XML tags.

    A parsed tag needs a hundred times as much memory as its source text, so a small file could fill the memory.

    Args:
        name: Name of the workbook in messages.

    Attributes:
        tags: Number of tags that were read since the last row or string. The reader of rows and strings resets this
            number.
    """

    def __init__(self, stream: BinaryIO, name: str) -> None:
        super().__init__(stream)
        self._name, self.tags = name, 0

    def open(self, *arguments: Any, **options: Any) -> Any:
        stream = super().open(*arguments, **options)
        read, self.tags = stream.read, 0

        def checked(size: int | None = -1) -> bytes:
            if size is None or size < 0:
                return b"".join(iter(partial(checked, BATCH_BYTES), b""))
            data = read(size)
            self.tags += data.count(b"<")  # All encodings of XML encode "<" with this byte.
            if self.tags > MAX_TAGS:
                why = f"it has more than {MAX_TAGS:,} XML tags in a row or a string, or outside them"
                raise UserError(f"{self._name} cannot be read as a workbook", why, SAVE_AS_CSV)
            return data

        stream.read = checked  # type: ignore[method-assign]
        return stream


def _open_workbook(stream: BinaryIO, name: str) -> tuple[_Archive, Any]:
    """Open a workbook with openpyxl. Limit the number of its strings and tags."""
    # Importing openpyxl takes 0.2 s.
    from openpyxl.reader.excel import SHARED_STRINGS, ExcelReader
    from openpyxl.reader.strings import SHEET_MAIN_NS, Text, iterparse

    class Reader(ExcelReader):  # type: ignore[misc]
        """Reader that works like ``openpyxl.load_workbook``. It parses the strings itself and limits their number."""

        def read_strings(self) -> None:
            part = self.package.find(SHARED_STRINGS)
            if part is None:
                return
            with archive.open(part.PartName[1:]) as source:
                for _, node in iterparse(source):
                    if node.tag != f"{{{SHEET_MAIN_NS}}}si":
                        continue
                    archive.tags = 0
                    # A string without formatting is parsed here. openpyxl would take ten times as long.
                    is_plain = all(child.tag == f"{{{SHEET_MAIN_NS}}}t" for child in node) and len(node) < 2
                    text = "".join(child.text or "" for child in node) if is_plain else Text.from_tree(node).content
                    self.shared_strings.append(text.replace("x005F_", ""))
                    node.clear()
                    if len(self.shared_strings) > MAX_STRINGS:
                        raise UserError(
                            f"{name} has more than {MAX_STRINGS:,} strings",
                            "all strings of a workbook must fit into memory",
                            SAVE_AS_CSV,
                        )

    reader = Reader(stream, read_only=True, data_only=True, keep_links=False)
    reader.archive = archive = _Archive(stream, name)
    reader.read()
    return archive, reader.wb


def open_table(
    kind: str,
    file: LineReader | ExcelReader,
    name: str,
    spec: ColumnSpec,
    label: str | None,
    *,
    keep_cells: bool = False,
) -> OpenFile:
    """Open a table and detect its delimiter, header and columns from its first rows, at most ``DETECTION_ROWS``.

    Args:
        kind: Format: ``csv``, ``tsv`` or ``xlsx``.
        name: Name in messages.
        label: Class of all rows, if it is given by the file name.
        keep_cells: If True, ``Row.cells`` contains the values of all columns.

    Raises:
        UserError: A column in ``spec`` does not exist, or it is unclear whether there is a header.
    """
    delimiter, head = ",", ""
    if isinstance(file, LineReader):
        file.fill_head(DETECTION_ROWS)
        head = file.head.decode("utf-8", "replace")
        delimiter, first = _detect_delimiter(head, "\t" if kind == "tsv" else DELIMITERS)
    else:
        first = file.first_rows
    rows = [fields for _, fields in first]
    is_escaped = bool(rows) and has_escaped_cells(rows[0])
    if is_escaped:
        rows = [list(map(unescape_cell, fields)) for fields in rows]
    if "\0" in head and _most_common_width(rows) == 1:
        why = "it contains null bytes and has no columns"
        raise UserError(f"{name} is a binary file", why, "name a file that contains texts")
    if above := count_rows_above_header(rows, spec):
        raise UserError(
            f"{name}: row {first[above][0]} seems to name the columns, not the first row",
            f"the first row has only one cell, {''.join(rows[0]).strip()[:80]!r}; row {first[above][0]} has "
            f"{', '.join(rows[above])}"[:500],
            f"delete the rows above row {first[above][0]}",
        )
    is_named = is_escaped or is_header(rows, spec)
    is_unsure = bool(rows) and not is_named and may_be_header(rows)
    is_replaced = bool(rows) and "\ufffd" in "".join(rows[0]) and "\ufffd".encode() not in getattr(file, "head", b"")
    if (is_named or is_unsure) and is_replaced:
        raise UserError(
            f"the first line of {name} is not UTF-8", "the names of the columns must be UTF-8", ENCODING_REMEDY
        )
    texts: tuple[str, ...] = ()
    hint = ""
    if not rows:
        columns = ResolvedColumns(("column 1",), None, (0,))
    elif is_named:
        names = [cell.strip() for cell in rows[0]]
        columns = choose_columns(name, names, spec, has_label=label is not None, rows=rows[1:])
        texts, hint = columns.names_at(columns.texts), columns.unread_hint()
        file.skip_lines(first[0][0])
    elif is_unsure:
        raise UserError(
            f"{name}: does its first line name the columns?",
            "the first line differs from the other lines, but contains no common column name: "
            f"{delimiter.join(rows[0])[:200]}",
            "if it does, pass a name with --text-column"
            + ("" if label is not None else " or --label")
            + "; otherwise, add a first line with the names of the columns",
        )
    else:
        names = [f"column {number}" for number in range(1, _most_common_width(rows) + 1)]
        columns = choose_columns(name, names, spec, has_label=label is not None, rows=rows, has_header=False)
        hint = columns.unread_hint()
    reads = columns.describe() + ("" if delimiter in ",\t" else f", separated by {delimiter!r}") if rows else ""
    batches = _iter_csv_records(file, delimiter) if isinstance(file, LineReader) and kind == "csv" else file
    parse = partial(parse_table, kind, columns, label, delimiter, keep_cells, is_escaped)
    cell_columns = columns.names if keep_cells else ()
    return OpenFile(name, file, batches, parse, kind, reads, texts, cell_columns, delimiter, columns, hint)


def _detect_delimiter(text: str, delimiters: str) -> tuple[str, list[NumberedFields]]:
    """Detect the delimiter. Return the delimiter, and the first rows with the number of the last line of each row.

    Spreadsheets may write "CSV" with semicolons. The delimiters are compared by these criteria, in this order: there is
    more than one column; the columns have common names; most rows have the same width; there are few distinct labels.
    """
    if delimiters == "\t":
        return delimiters, list(islice(_split_tsv(enumerate(text.split("\n"), start=1)), DETECTION_ROWS))
    heads = {delimiter: _csv_head(text, delimiter) for delimiter in delimiters}

    def sort_key(delimiter: str) -> tuple[bool, bool, float, int]:
        rows = [fields for _, fields in heads[delimiter]]
        width = _most_common_width(rows)
        agreed = sum(len(row) == width for row in rows) / max(1, len(rows))
        return width > 1, is_header(rows, ColumnSpec()), agreed, -len({row[0] for row in rows})

    best = max(delimiters, key=sort_key)
    return best, heads[best]


def _most_common_width(rows: Sequence[Sequence[str]]) -> int:
    return Counter(map(len, rows)).most_common(1)[0][0] if rows else 0


def _csv_head(text: str, delimiter: str) -> list[NumberedFields]:
    csv.field_size_limit(2 * MAX_RECORD)
    reader = csv.reader(io.StringIO(text, newline="\n"), delimiter=delimiter, strict=True)
    rows: list[NumberedFields] = []
    fields: list[str] | None = []
    while fields is not None and len(rows) < DETECTION_ROWS:
        with suppress(csv.Error):
            if fields := next(reader, None):
                rows.append((reader.line_num, fields))
    return rows


def _split_tsv(lines: Iterable[tuple[int, str]]) -> Iterator[NumberedFields]:
    """Split lines at tabs. Quotes around a whole field are removed. All other quotes are ordinary characters."""
    for number, line in lines:
        if line := line.rstrip("\r"):
            fields = line.split("\t")
            if '"' in line:
                fields = [
                    field[1:-1].replace('""', '"') if len(field) > 1 and field[0] == field[-1] == '"' else field
                    for field in fields
                ]
            yield number, fields
