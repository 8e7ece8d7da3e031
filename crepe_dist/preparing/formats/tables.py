"""Tables: CSV, TSV, and rows of workbooks, with or without a header line."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from crepe_dist.errors import UserError
from crepe_dist.preparing.formats.columns import (
    Columns,
    Wanted,
    choose_named,
    choose_numbered,
    is_header,
    may_be_header,
)
from crepe_dist.preparing.formats.lines import LineCutter
from crepe_dist.preparing.formats.rows import (
    FROM_WINDOWS,
    MAX_RECORD,
    BadRow,
    Block,
    OpenFile,
    Parsed,
    excerpt,
    too_long,
)

LOOK_AT = 200  # rows used to detect the header and the columns
# A record with wrong quoting is skipped up to the line where its quotes balance, if that is within this many lines.
# Otherwise only its first line is skipped, so that a stray quote does not swallow the file.
BROKEN_LINES = 50
DELIMITERS = ",;\t|"


@dataclass(frozen=True)
class Table:
    """Parser of tables.

    CSV follows RFC 4180 strictly, because otherwise a stray quote would swallow rows. TSV has one row per line; quotes
    are ordinary characters, but those around a whole field are removed. A row of a workbook is a JSON list in a line,
    without empty cells at its end.

    Args:
        kind: ``csv``, ``tsv`` or ``xlsx``.
        label: class of all rows, if the file name gives it.
        keep: keep the values of all columns in ``Row.cells``.
    """

    kind: str
    columns: Columns
    label: str | None = None
    delimiter: str = ","
    keep: bool = False

    def parse(self, block: Block) -> Parsed:
        # Decode invalid UTF-8 as lone surrogates, so that a bad row does not fail the whole block.
        lines = list(io.StringIO(block.data.decode("utf-8", "surrogateescape"), newline="\n"))
        result = Parsed([], [], len(block.data), len(lines))
        used = (self._csv if self.kind == "csv" else self._rows)(lines, block, result)
        if used < len(lines):
            consumed = len("".join(lines[:used]).encode("utf-8", "surrogateescape"))
            result = result._replace(consumed=consumed, lines=used)
        return result

    def _csv(self, lines: list[str], block: Block, result: Parsed) -> int:
        """Add rows to ``result`` and return the number of lines used."""
        csv.field_size_limit(2 * MAX_RECORD)
        start = 0
        while start < len(lines):
            reader = csv.reader(_from(lines, start), delimiter=self.delimiter, strict=True)
            first = block.line + start - 1
            done = 0
            try:
                for fields in reader:
                    if fields:
                        self._add(fields, first + done + 1, result)
                    done = reader.line_num
                return len(lines)
            except csv.Error as error:
                record = start + done
                at_end = start + reader.line_num == len(lines)
                broken = _broken_lines(lines, record)
                if (at_end or not broken) and not block.final and not (block.full and record == 0):
                    return record  # the record may continue after the block
                broken = broken or 1
                text = excerpt(lines[record].rstrip("\r\n"))
                result.bad.append(BadRow(block.line + record, f"not CSV: {error}", text, broken))
                start = record + broken
        return len(lines)

    def _rows(self, lines: list[str], block: Block, result: Parsed) -> int:
        width = len(self.columns.names) if self.kind == "xlsx" else 0
        for number, fields in _fields(self.kind, lines):
            self._add(fields + [""] * (width - len(fields)), block.line + number - 1, result)
        return len(lines)

    def _add(self, fields: list[str], line: int, result: Parsed) -> None:
        width = len(self.columns.names)
        if len(fields) != width:
            reason = f"wrong columns: {len(fields)} instead of {width}"
        elif sum(map(len, fields)) > MAX_RECORD:
            reason = too_long()
        else:
            result.rows.append(self.columns.row(line, fields, self.label, tuple(fields) if self.keep else ()))
            return
        result.bad.append(BadRow(line, reason, excerpt(self.delimiter.join(fields))))


def open_table(
    name: str,
    cutter: LineCutter,
    file: str,
    wanted: Wanted,
    header: str,
    label: str | None,
    *,
    keep: bool = False,
) -> OpenFile:
    """Open a table and detect its delimiter, header and columns from its first rows.

    Args:
        name: ``csv``, ``tsv`` or ``xlsx``.
        header: ``yes``, ``no`` or ``auto``. Detection waits for ``LOOK_AT`` rows of a live stream.

    Raises:
        UserError: A wanted column does not exist, or it is unclear whether there is a header.
    """
    cutter.quoted = name == "csv"
    cutter.look(LOOK_AT if header == "auto" else 1)
    delimiter, first = _look(name, cutter.head)
    rows = [fields for _, fields in first]
    if b"\0" in cutter.head and _usual_width(rows) == 1:
        raise UserError(f"{file} is a binary file", "it has bytes of value 0, and no columns", "name a file of texts")
    is_named = header == "yes" or (header == "auto" and is_header(rows, wanted))
    is_unsure = bool(rows) and not is_named and header == "auto" and may_be_header(rows)
    is_replaced = bool(rows) and "\ufffd" in "".join(rows[0]) and "\ufffd".encode() not in cutter.head
    if (is_named or is_unsure) and is_replaced:
        raise UserError(f"the first line of {file} is not UTF-8", "names of columns must be", FROM_WINDOWS)
    reads = ""
    texts: tuple[str, ...] = ()
    if not rows:
        columns = Columns(("column 1",), None, (0,))
    elif is_named:
        names = [cell.strip() for cell in rows[0]]
        columns = choose_named(file, names, wanted, label_given=label is not None, rows=rows[1:])
        texts = columns.named(columns.texts)
        cutter.skip_lines(first[0][0])
    elif is_unsure:
        raise UserError(
            f"{file}: does its first line name the columns?",
            f"it looks different from the others: {delimiter.join(rows[0])[:200]}",
            "give --header yes or --header no, and if necessary "
            + ("the column: --text" if label is not None else "the columns: --label, --text"),
        )
    else:
        columns = choose_numbered(file, _usual_width(rows), wanted, label_given=label is not None, rows=rows)
    if rows:
        reads = columns.describe() + ("" if delimiter in ",\t" else f", separated by {delimiter}")
    table = Table(name, columns, label, delimiter, keep)
    kept = columns.names if keep else ()
    return OpenFile(table.parse, cutter, name, reads, texts, kept, delimiter, columns)


Head = list[tuple[int, list[str]]]


def _look(name: str, head: bytes) -> tuple[str, Head]:
    """Detect the delimiter, and return it with the first rows and the line on which each ends.

    Spreadsheets may write "CSV" with semicolons. The best delimiter yields columns with usual names; then the most rows
    of equal width; then the fewest distinct labels.
    """
    text = head.decode("utf-8", "replace")
    if name != "csv":
        return {"tsv": "\t"}.get(name, ","), list(islice(_fields(name, io.StringIO(text, newline="\n")), LOOK_AT))
    heads = {delimiter: _csv_head(text, delimiter) for delimiter in DELIMITERS}

    def merit(delimiter: str) -> tuple[bool, bool, float, int]:
        rows = [fields for _, fields in heads[delimiter]]
        width = _usual_width(rows)
        agreed = sum(len(row) == width for row in rows) / max(1, len(rows))
        return width > 1, is_header(rows, Wanted()), agreed, -len({row[0] for row in rows})

    best = max(DELIMITERS, key=merit)
    return best, heads[best]


def _usual_width(rows: Sequence[Sequence[str]]) -> int:
    return Counter(map(len, rows)).most_common(1)[0][0] if rows else 0


def _csv_head(text: str, delimiter: str) -> Head:
    csv.field_size_limit(2 * MAX_RECORD)
    reader = csv.reader(io.StringIO(text, newline="\n"), delimiter=delimiter, strict=True)
    rows: Head = []
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


def _fields(kind: str, lines: Iterable[str]) -> Iterator[tuple[int, list[str]]]:
    """Yield the number of each line that is not empty, from 1, and its fields."""
    split = _tsv_fields if kind == "tsv" else json.loads
    stripped = enumerate((line.rstrip("\r\n") for line in lines), start=1)
    return ((number, split(line)) for number, line in stripped if line)


def _tsv_fields(line: str) -> list[str]:
    fields = line.split("\t")
    if '"' in line:
        fields = [
            field[1:-1].replace('""', '"') if len(field) > 1 and field[0] == field[-1] == '"' else field
            for field in fields
        ]
    return fields


def _from(lines: list[str], start: int) -> Iterator[str]:
    return (lines[index] for index in range(start, len(lines)))


def _broken_lines(lines: list[str], start: int) -> int:
    """Return the number of lines of the broken record at ``start``; 0 if more lines are needed to tell."""
    quotes = 0
    first = lines[start : start + BROKEN_LINES]
    for count, line in enumerate(first, start=1):
        quotes += line.count('"')
        if quotes % 2 == 0:
            return count
    return 1 if len(first) == BROKEN_LINES else 0
