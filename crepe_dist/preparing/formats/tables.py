"""Tables: CSV, TSV, and workbooks of Excel, with or without a header line."""

from __future__ import annotations

import csv
import io
import warnings
import zipfile
from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
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

# A record with wrong quoting is skipped up to the line where its quotes balance, if that is within this many lines.
# Otherwise only its first line is skipped, so that a stray quote does not swallow the file.
BROKEN_LINES = 50
DELIMITERS = ",;\t|"
MAX_ROWS = 1 << 20  # of a sheet in Excel; openpyxl yields a blank row for each number that is missing
SHEET_ROWS = 256  # in a batch
MAX_WORKBOOK_BYTES = 1 << 29  # bytes of a workbook after decompression
# Openpyxl fills a row with empty cells up to its last one. A workbook of ``MOST`` bytes has fewer cells of its own.
MAX_CELLS = 1 << 25
MAX_STRINGS = 1 << 20  # of a workbook, one for each row of a sheet; openpyxl keeps all of them in memory
MAX_TAGS = 1 << 20  # XML tags in a row, in a string, or in a part that is parsed as a whole
SAVE_AS_CSV = "save the sheet as CSV UTF-8"
NumberedFields = tuple[int, list[str]]


@dataclass(frozen=True)
class TableParser:
    """Parser of tables. A batch holds lines, or rows that are already divided into fields.

    Args:
        label: class of all rows, if the file name gives it.
        keep: keep the values of all columns in ``Row.cells``.
        guarded: ``cell`` made the fields.
    """

    kind: str
    columns: ResolvedColumns
    label: str | None = None
    delimiter: str = ","
    keep_cells: bool = False
    has_guards: bool = False

    def parse(self, batch: RawBatch) -> Parsed:
        result = Parsed([], [])
        rows, width, row, add = batch.content, len(self.columns.names), self.columns.make_row, result.rows.append
        if isinstance(rows, bytes) and self.kind == "csv":
            rows, result.invalid[:], _ = _split_csv(_split_lines(rows), self.delimiter, batch.line)
        elif isinstance(rows, bytes):
            rows = _split_tsv(number_lines(batch))
        for line, fields in rows:
            if self.kind == "xlsx":  # empty fields at the end of a row are left out
                fields += [""] * (width - len(fields))
            if sum(map(len, fields)) > MAX_RECORD:
                reason = TOO_LONG
            elif len(fields) != width:
                reason = f"wrong columns: {len(fields)} instead of {width}"
            else:
                fields = list(map(unescape_cell, fields)) if self.has_guards else fields
                add(row(line, fields, self.label, tuple(fields) if self.keep_cells else ()))
                continue
            result.invalid.append(InvalidRow(line, reason, excerpt(self.delimiter.join(fields))))
        return result


@dataclass(frozen=True)
class CsvRecords:
    """Batches of whole records of a CSV file, by the strict rules of RFC 4180: else a stray quote would swallow rows.

    Workers divide them into fields. Only lines with quotes are looked at here, for where the records end.
    """

    lines: Iterable[RawBatch]
    delimiter: str

    def __iter__(self) -> Iterator[RawBatch]:
        rest, first = b"", 1
        for batch in chain(self.lines, [RawBatch(0, b"", 0)]):
            if not rest and b'"' not in batch.content:
                yield batch
                continue
            first = first if rest else batch.line
            data = rest + batch.content
            lines = _split_lines(data)
            rows, bad, used = _split_csv(lines, self.delimiter, first, is_last=not batch.content)
            rest = "".join(lines[used:]).encode("utf-8", "surrogateescape")
            yield RawBatch(first, rows if bad else data[: len(data) - len(rest)], batch.size, (*bad, *batch.invalid))
            first += used


def _split_lines(data: bytes) -> list[str]:
    return list(io.StringIO(data.decode("utf-8", "surrogateescape"), newline="\n"))


def _split_csv(
    lines: Sequence[str], delimiter: str, first: int, *, is_last: bool = True
) -> tuple[list[NumberedFields], list[InvalidRow], int]:
    """Divide lines into records and their fields; return the rows, those that are broken, and how many lines they are.

    Args:
        first: number of the first line.
        is_last: the file ends with these lines; else an incomplete record waits for more of them.
    """
    csv.field_size_limit(2 * MAX_RECORD)
    rows: list[NumberedFields] = []
    bad: list[InvalidRow] = []
    start = 0  # of the record
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
    """Return the number of lines of the broken record that begins these; 0 if more lines are needed to tell."""
    quotes = 0
    for count, line in enumerate(lines, start=1):
        quotes += line.count('"')
        if quotes % 2 == 0:
            return count
    return 1 if len(lines) >= BROKEN_LINES else 0


class ExcelReader:
    """Reader of the first sheet of a workbook of Excel, in bounded memory.

    Attributes:
        first: the first rows that are not empty, each with its number.

    Raises:
        UserError: It is no workbook, is damaged, or expands too much.
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
        """Skip the rows up to a number."""
        self.first_rows = [row for row in self.first_rows if row[0] > last]

    def __iter__(self) -> Iterator[RawBatch]:
        rows = chain(self.first_rows, self._rows)
        while content := list(islice(rows, SHEET_ROWS)):
            yield RawBatch(content[0][0], content, 0)

    def _read(self) -> Generator[NumberedFields, None, None]:
        try:
            with zipfile.ZipFile(self._path) as archive:  # which never yields more than these sizes
                size = sum(member.file_size for member in archive.infolist())
            if size > MAX_WORKBOOK_BYTES:
                raise UserError(
                    f"{self._name} expands to {size:,} bytes, and the limit is {MAX_WORKBOOK_BYTES:,}",
                    remedy=SAVE_AS_CSV,
                )
            with self._path.open("rb") as stream:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # about styles
                    archive, book = _open_workbook(stream, self._name)
                sheet, left = book.worksheets[0], MAX_CELLS
                sheet.reset_dimensions()  # which may be wrong
                for number, row in enumerate(sheet.iter_rows(values_only=True), 1):
                    if number > MAX_ROWS:
                        raise ValueError(f"it has more than {MAX_ROWS:,} rows")
                    archive.tags, left = 0, left - len(row)
                    if left < 0:
                        raise UserError(
                            f"{self._name} has more than {MAX_CELLS:,} cells, and most of them are empty",
                            f"row {number:,} reaches to column {len(row):,} of the sheet",
                            f"delete the columns to the right of the table, or {SAVE_AS_CSV}",
                        )
                    cells = ["" if cell is None else str(cell) for cell in row]
                    while cells and not cells[-1]:
                        cells.pop()
                    if cells:
                        yield number, cells
        except UserError:
            raise
        except Exception as error:  # openpyxl may raise anything
            why = f"{type(error).__name__}: {error}"[:300]
            raise UserError(f"{self._name} cannot be read as a workbook", why, SAVE_AS_CSV) from error


class _Archive(zipfile.ZipFile):
    """Workbook with a limited number of XML tags in each part: a parsed tag takes a hundred times its length.

    Args:
        name: name of the workbook in errors.

    Attributes:
        tags: number of tags that were read since the last row or string. The reader of rows and strings resets it.
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
            self.tags += data.count(b"<")  # a byte of "<" in all encodings that XML can have
            if self.tags > MAX_TAGS:
                why = f"it has more than {MAX_TAGS:,} XML tags in a row or a string, or outside of them"
                raise UserError(f"{self._name} cannot be read as a workbook", why, SAVE_AS_CSV)
            return data

        stream.read = checked  # type: ignore[method-assign]
        return stream


def _open_workbook(stream: BinaryIO, name: str) -> tuple[_Archive, Any]:
    """Open a workbook with openpyxl, within the limits of its strings and tags."""
    from openpyxl.reader.excel import SHARED_STRINGS, ExcelReader  # takes 0.2 s to import
    from openpyxl.reader.strings import SHEET_MAIN_NS, Text, iterparse

    class Reader(ExcelReader):  # type: ignore[misc]
        """Reader that is ``openpyxl.load_workbook``, except for the strings."""

        def read_strings(self) -> None:
            part = self.package.find(SHARED_STRINGS)
            if part is None:
                return
            with archive.open(part.PartName[1:]) as source:
                for _, node in iterparse(source):
                    if node.tag != f"{{{SHEET_MAIN_NS}}}si":
                        continue
                    archive.tags = 0
                    # A string without formats is read here: openpyxl takes ten times as long.
                    is_plain = all(each.tag == f"{{{SHEET_MAIN_NS}}}t" for each in node) and len(node) < 2
                    text = "".join(each.text or "" for each in node) if is_plain else Text.from_tree(node).content
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
    header: str,
    label: str | None,
    *,
    keep_cells: bool,
) -> OpenFile:
    """Open a table and detect its delimiter, header and columns from its first rows.

    Args:
        kind: ``csv``, ``tsv`` or ``xlsx``.
        header: ``yes``, ``no`` or ``auto``. Detection waits for ``LOOK_AT`` rows of a live pipe.

    Raises:
        UserError: A wanted column does not exist, or it is unclear whether there is a header.
    """
    delimiter, head = ",", ""
    if isinstance(file, LineReader):
        file.fill_head(DETECTION_ROWS if header == "auto" else 1)
        head = file.head.decode("utf-8", "replace")
        delimiter, first = _detect_delimiter(head, "\t" if kind == "tsv" else DELIMITERS)
    else:
        first = file.first_rows
    rows = [fields for _, fields in first]
    guarded = bool(rows) and has_escaped_cells(rows[0])
    if guarded:
        rows = [list(map(unescape_cell, fields)) for fields in rows]
    if "\0" in head and _most_common_width(rows) == 1:
        raise UserError(f"{name} is a binary file", "it has bytes of value 0, and no columns", "name a file of texts")
    if header != "no" and (above := count_rows_above_header(rows, spec, has_header=header == "yes")):
        raise UserError(
            f"{name}: row {first[above][0]} seems to name the columns, not the first row",
            f"the first row has one cell, {''.join(rows[0]).strip()[:80]!r}; row {first[above][0]} has "
            f"{', '.join(rows[above])}"[:500],
            f"delete what is above row {first[above][0]}",
        )
    is_named = header == "yes" or (header == "auto" and (guarded or is_header(rows, spec)))
    is_unsure = bool(rows) and not is_named and header == "auto" and may_be_header(rows)
    is_replaced = bool(rows) and "\ufffd" in "".join(rows[0]) and "\ufffd".encode() not in getattr(file, "head", b"")
    if (is_named or is_unsure) and is_replaced:
        raise UserError(f"the first line of {name} is not UTF-8", "names of columns must be", ENCODING_REMEDY)
    texts: tuple[str, ...] = ()
    hint = ""
    if not rows:
        columns = ResolvedColumns(("column 1",), None, (0,))
    elif is_named:
        names = [cell.strip() for cell in rows[0]]
        columns = choose_columns(name, names, spec, has_label=label is not None, rows=rows[1:])
        texts, hint = columns.names_at(columns.texts), columns.unread_hint(rows[1:])
        file.skip_lines(first[0][0])
    elif is_unsure:
        raise UserError(
            f"{name}: does its first line name the columns?",
            f"it looks different from the others: {delimiter.join(rows[0])[:200]}",
            "give --header yes or --header no, and if necessary "
            + ("the column: --text-column" if label is not None else "the columns: --label, --text-column"),
        )
    else:
        names = [f"column {number}" for number in range(1, _most_common_width(rows) + 1)]
        columns = choose_columns(name, names, spec, has_label=label is not None, rows=rows, has_header=False)
        hint = columns.unread_hint(rows, has_header=False)
    reads = columns.describe() + ("" if delimiter in ",\t" else f", separated by {delimiter!r}") if rows else ""
    batches = CsvRecords(file, delimiter) if isinstance(file, LineReader) and kind == "csv" else file
    table = TableParser(kind, columns, label, delimiter, keep_cells, guarded)
    kept = columns.names if keep_cells else ()
    return OpenFile(name, file, batches, table.parse, kind, reads, texts, kept, delimiter, columns, hint)


def _detect_delimiter(text: str, delimiters: str) -> tuple[str, list[NumberedFields]]:
    """Detect the delimiter, and return it with the first rows and the line on which each ends.

    Spreadsheets may write "CSV" with semicolons. The best delimiter yields columns with usual names; then the most rows
    of equal width; then the fewest distinct labels.
    """
    if delimiters == "\t":
        return delimiters, list(islice(_split_tsv(enumerate(text.split("\n"), start=1)), DETECTION_ROWS))
    heads = {delimiter: _csv_head(text, delimiter) for delimiter in delimiters}

    def merit(delimiter: str) -> tuple[bool, bool, float, int]:
        rows = [fields for _, fields in heads[delimiter]]
        width = _most_common_width(rows)
        agreed = sum(len(row) == width for row in rows) / max(1, len(rows))
        return width > 1, is_header(rows, ColumnSpec()), agreed, -len({row[0] for row in rows})

    best = max(delimiters, key=merit)
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
    """Divide lines at tabs. Quotes are ordinary characters, but those around a whole field are removed."""
    for number, line in lines:
        if line := line.rstrip("\r"):
            fields = line.split("\t")
            if '"' in line:
                fields = [
                    field[1:-1].replace('""', '"') if len(field) > 1 and field[0] == field[-1] == '"' else field
                    for field in fields
                ]
            yield number, fields
