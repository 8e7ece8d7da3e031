"""Tables: CSV, TSV, and rows of workbooks, with or without a header line."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

from crepe_dist.errors import UserError
from crepe_dist.preparing.formats.columns import (
    Columns,
    Wanted,
    choose_named,
    choose_numbered,
    is_header,
    may_be_header,
)
from crepe_dist.preparing.formats.lines import Lines, numbered
from crepe_dist.preparing.formats.rows import (
    FROM_WINDOWS,
    LOOK_AT,
    MAX_RECORD,
    TOO_LONG,
    BadRow,
    Batch,
    OpenFile,
    Parsed,
    excerpt,
)

if TYPE_CHECKING:
    from crepe_dist.preparing.formats.workbook import Sheet

# A record with wrong quoting is skipped up to the line where its quotes balance, if that is within this many lines.
# Otherwise only its first line is skipped, so that a stray quote does not swallow the file.
BROKEN_LINES = 50
DELIMITERS = ",;\t|"
NumberedFields = tuple[int, list[str]]


@dataclass(frozen=True)
class Table:
    """Parser of tables. A batch holds lines of TSV, or rows that are already divided into fields.

    Args:
        label: class of all rows, if the file name gives it.
        keep: keep the values of all columns in ``Row.cells``.
        pads: rows may leave out empty fields at their end.
    """

    columns: Columns
    label: str | None = None
    delimiter: str = ","
    keep: bool = False
    pads: bool = False

    def parse(self, batch: Batch) -> Parsed:
        result = Parsed([], [])
        width = len(self.columns.names)
        rows = _tsv_rows(numbered(batch)) if isinstance(batch.content, bytes) else batch.content
        for line, fields in rows:
            if self.pads:
                fields += [""] * (width - len(fields))
            if sum(map(len, fields)) > MAX_RECORD:
                reason = TOO_LONG
            elif len(fields) != width:
                reason = f"wrong columns: {len(fields)} instead of {width}"
            else:
                result.rows.append(self.columns.row(line, fields, self.label, tuple(fields) if self.keep else ()))
                continue
            result.bad.append(BadRow(line, reason, excerpt(self.delimiter.join(fields))))
        return result


class CsvRecords:
    """Records of a CSV file, by the strict rules of RFC 4180, because otherwise a stray quote would swallow rows.

    Python's ``csv`` reads them. It cannot continue after a broken record, hence the lines of a record are kept until
    it has been read, and reading starts again after those that are skipped.
    """

    def __init__(self, lines: Lines, delimiter: str) -> None:
        self._batches = iter(lines)
        self._delimiter = delimiter
        self._lines: list[str] = []
        self._first = 1  # number of the first of them
        self._record = self._next = 0  # index of the first line of the record, and of the next line to read
        self._size = 0  # bytes since the last batch
        self._ends: tuple[BadRow, ...] = ()  # lines that are lost where the file ends early

    def __iter__(self) -> Iterator[Batch]:
        csv.field_size_limit(2 * MAX_RECORD)
        reader = self._reader()
        while self._fetch():
            rows: list[NumberedFields] = []
            bad: list[BadRow] = []
            while self._next < len(self._lines):
                self._record = self._next
                try:
                    fields = next(reader)
                except csv.Error as error:
                    bad.append(self._skip_broken(error))
                    reader = self._reader()
                else:
                    if fields:
                        rows.append((self._first + self._record, fields))
            self._record, size, self._size = self._next, self._size, 0
            yield Batch(self._first, rows, size, tuple(bad))
        if self._ends:
            yield Batch(self._first, [], 0, self._ends)

    def _reader(self) -> Any:
        return csv.reader(self._lines_of_records(), delimiter=self._delimiter, strict=True)

    def _lines_of_records(self) -> Iterator[str]:
        while self._next < len(self._lines) or self._fetch():
            self._next += 1
            yield self._lines[self._next - 1]

    def _fetch(self) -> bool:
        """Add more lines to those of the record, unless the file ends or the record does not."""
        self._lines = self._lines[self._record :]
        self._first, self._next, self._record = self._first + self._record, self._next - self._record, 0
        if sum(map(len, self._lines)) > 2 * MAX_RECORD:
            return False
        batch = next(self._batches, None)
        if batch is None or batch.bad:
            self._ends = batch.bad if batch else self._ends
            return False
        self._first = self._first if self._lines else batch.line
        self._lines += io.StringIO(batch.content.decode("utf-8", "surrogateescape"), newline="\n")
        self._size += batch.size
        return True

    def _skip_broken(self, error: csv.Error) -> BadRow:
        while not (lines := _broken_lines(self._lines[self._record :])) and self._fetch():
            pass
        text = excerpt(self._lines[self._record].rstrip("\r\n"))
        self._next = self._record + (lines or 1)
        return BadRow(self._first + self._record, f"not CSV: {error}", text, lines or 1)


def _broken_lines(lines: Sequence[str]) -> int:
    """Return the number of lines of the broken record that begins these; 0 if more lines are needed to tell."""
    quotes = 0
    for count, line in enumerate(lines[:BROKEN_LINES], start=1):
        quotes += line.count('"')
        if quotes % 2 == 0:
            return count
    return 1 if len(lines) >= BROKEN_LINES else 0


def open_table(
    kind: str,
    file: Lines | Sheet,
    name: str,
    wanted: Wanted,
    header: str,
    label: str | None,
    *,
    keep: bool = False,
) -> OpenFile:
    """Open a table and detect its delimiter, header and columns from its first rows.

    Args:
        kind: ``csv``, ``tsv`` or ``xlsx``.
        header: ``yes``, ``no`` or ``auto``. Detection waits for ``LOOK_AT`` rows of a live pipe.

    Raises:
        UserError: A wanted column does not exist, or it is unclear whether there is a header.
    """
    delimiter, head = ",", ""
    if isinstance(file, Lines):
        file.look(LOOK_AT if header == "auto" else 1)
        head = file.head.decode("utf-8", "replace")
        delimiter, first = _look(head, "\t" if kind == "tsv" else DELIMITERS)
    else:
        first = file.first
    rows = [fields for _, fields in first]
    if "\0" in head and _usual_width(rows) == 1:
        raise UserError(f"{name} is a binary file", "it has bytes of value 0, and no columns", "name a file of texts")
    is_named = header == "yes" or (header == "auto" and is_header(rows, wanted))
    is_unsure = bool(rows) and not is_named and header == "auto" and may_be_header(rows)
    is_replaced = bool(rows) and "\ufffd" in "".join(rows[0]) and "\ufffd".encode() not in getattr(file, "head", b"")
    if (is_named or is_unsure) and is_replaced:
        raise UserError(f"the first line of {name} is not UTF-8", "names of columns must be", FROM_WINDOWS)
    texts: tuple[str, ...] = ()
    if not rows:
        columns = Columns(("column 1",), None, (0,))
    elif is_named:
        names = [cell.strip() for cell in rows[0]]
        columns = choose_named(name, names, wanted, label_given=label is not None, rows=rows[1:])
        texts = columns.named(columns.texts)
        file.skip_lines(first[0][0])
    elif is_unsure:
        raise UserError(
            f"{name}: does its first line name the columns?",
            f"it looks different from the others: {delimiter.join(rows[0])[:200]}",
            "give --header yes or --header no, and if necessary "
            + ("the column: --text" if label is not None else "the columns: --label, --text"),
        )
    else:
        columns = choose_numbered(name, _usual_width(rows), wanted, label_given=label is not None, rows=rows)
    reads = columns.describe() + ("" if delimiter in ",\t" else f", separated by {delimiter}") if rows else ""
    batches = CsvRecords(file, delimiter) if isinstance(file, Lines) and kind == "csv" else file
    table = Table(columns, label, delimiter, keep, pads=kind == "xlsx")
    kept = columns.names if keep else ()
    return OpenFile(name, file, batches, table.parse, kind, reads, texts, kept, delimiter, columns)


def _look(text: str, delimiters: str) -> tuple[str, list[NumberedFields]]:
    """Detect the delimiter, and return it with the first rows and the line on which each ends.

    Spreadsheets may write "CSV" with semicolons. The best delimiter yields columns with usual names; then the most rows
    of equal width; then the fewest distinct labels.
    """
    if delimiters == "\t":
        return delimiters, list(islice(_tsv_rows(enumerate(text.split("\n"), start=1)), LOOK_AT))
    heads = {delimiter: _csv_head(text, delimiter) for delimiter in delimiters}

    def merit(delimiter: str) -> tuple[bool, bool, float, int]:
        rows = [fields for _, fields in heads[delimiter]]
        width = _usual_width(rows)
        agreed = sum(len(row) == width for row in rows) / max(1, len(rows))
        return width > 1, is_header(rows, Wanted()), agreed, -len({row[0] for row in rows})

    best = max(delimiters, key=merit)
    return best, heads[best]


def _usual_width(rows: Sequence[Sequence[str]]) -> int:
    return Counter(map(len, rows)).most_common(1)[0][0] if rows else 0


def _csv_head(text: str, delimiter: str) -> list[NumberedFields]:
    csv.field_size_limit(2 * MAX_RECORD)
    reader = csv.reader(io.StringIO(text, newline="\n"), delimiter=delimiter, strict=True)
    rows: list[NumberedFields] = []
    while len(rows) < LOOK_AT:
        try:
            fields = next(reader)
        except StopIteration:
            break
        except csv.Error:
            continue
        if fields:
            rows.append((reader.line_num, fields))
    return rows


def _tsv_rows(lines: Iterable[tuple[int, str]]) -> Iterator[NumberedFields]:
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
