"""Reader of texts to classify, from files and pipes. It keeps the order and yields unusable rows, too."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from itertools import chain, islice, repeat
from operator import attrgetter
from pathlib import Path
from typing import NamedTuple

from crepe_dist.errors import UserError
from crepe_dist.preparing.formats import BadRow, OpenFile, Row, check_text
from crepe_dist.preparing.opening import open_source
from crepe_dist.preparing.sources import LINES, PIPE, Reading, Source, by_suffix

KINDS = (LINES, "csv", "tsv", "jsonl", "parquet", "xlsx")
GROUP = 1024  # rows in a group


class Input(NamedTuple):
    """Row of a file or pipe.

    Args:
        line: number of the row's first line, from 1; in a Parquet file, the number of the row.
        problem: reason why the row cannot be classified; empty if it can.
        id: value of the column of ids; empty if there is none.
    """

    line: int
    text: str
    problem: str = ""
    cells: tuple[str, ...] = ()
    id: str = ""

    @property
    def place(self) -> str:
        """Line and id, for people."""
        return f"line {self.line}" + (f" ({self.id})" if self.id else "")


class Inputs:
    """Iterator over the rows of one file or pipe, in bounded memory.

    Attributes:
        columns: names of the columns; empty if their values are not kept.
        delimiter: delimiter of a CSV file; a comma for other formats.
        format: one of ``KINDS``.
    """

    def __init__(self, opened: OpenFile) -> None:
        self.columns = opened.kept
        self.delimiter = opened.delimiter if opened.format == "csv" else ","
        self.format = opened.format
        self._opened = opened

    def __iter__(self) -> Iterator[list[Input]]:
        """Yield groups of rows: about a thousand at a time from a file, those that have arrived from a pipe."""
        for parsed in self._opened.parsed():
            bad = sorted(parsed.bad, key=attrgetter("line"))
            unusable = chain.from_iterable(map(self._unusable, bad))
            rows = heapq.merge(map(_input, parsed.rows), unusable, key=attrgetter("line"))
            while group := list(islice(rows, GROUP)):
                yield group

    def _unusable(self, bad: BadRow) -> Iterator[Input]:
        """Yield one row per broken record; one per lost row for Parquet, where a record stands for several rows."""
        problem = f"{bad.reason}; it begins: {bad.excerpt}" if bad.excerpt else bad.reason
        count = bad.lines if self._opened.format == "parquet" else 1
        return map(Input, range(bad.line, bad.line + count), repeat(""), repeat(problem))


def open_inputs(name: str, kind: str | None = None, reading: Reading | None = None, *, keep: bool = False) -> Inputs:
    """Open a file of texts.

    Args:
        name: path of the file, or ``-`` for standard input.
        kind: one of ``KINDS``; ``None`` decides by the file name and falls back to lines.
        reading: header and columns of a table; its ``format`` is ignored.
        keep: whether to keep the values of all columns.

    Raises:
        UserError: the file cannot be read, or the text column is ambiguous.
    """
    path = None if name == PIPE else Path(name)
    if path is not None and not (path.is_file() or path.is_fifo()):
        what = "is not a file" if path.exists() else "does not exist"
        raise UserError(f"{name} {what}", remedy="name a file or a pipe, or - for standard input")
    kind = kind or (by_suffix(path) if path else None) or LINES
    # An empty label: look for no label column, but do not mistake one for the text.
    opened = open_source(Source(path, name, format=kind, label=""), reading or Reading(), keep=keep, live=True)
    return Inputs(opened if path else opened._replace(name="the standard input"))


def _input(row: Row) -> Input:
    try:
        check_text(row.text)
    except ValueError as error:
        return Input(row.line, "", str(error), row.cells, row.id)
    return Input(row.line, row.text, "", row.cells, row.id)
