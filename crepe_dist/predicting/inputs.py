"""Texts to classify, out of files and pipes: as many rows as come in, in their order, the unusable ones too."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, islice, repeat
from operator import attrgetter
from pathlib import Path

from crepe_dist.errors import UserError
from crepe_dist.preparing.formats.rows import BadRow, Block, Cutter, Parsed, Parser, Row, Share, check_text
from crepe_dist.preparing.sources import LINES, PIPE, Reading, Source, by_suffix, open_source

KINDS = (LINES, "csv", "tsv", "jsonl", "parquet")
GROUP = 1024  # rows of an unreadable piece that are told together


@dataclass(frozen=True)
class Input:
    """One row.

    Args:
        line: on which it ends, from 1; of a Parquet file, the number of the row.
        text: what is classified; of title and text, both.
        problem: why it cannot be classified; empty if it can.
        cells: the values of all columns, where they are kept.
    """

    line: int
    text: str
    problem: str = ""
    cells: tuple[str, ...] = ()


class Inputs:
    """The rows of one file or pipe, in bounded memory.

    Attributes:
        columns: names of the ``cells``; empty unless they are kept.
    """

    def __init__(self, parser: Parser, cutter: Cutter) -> None:
        self.columns = parser.kept
        self._parser = parser
        self._cutter = cutter

    def __iter__(self) -> Iterator[list[Input]]:
        """Rows that can be answered together: some thousands of a file, of a pipe those that have come."""
        while (block := self._cutter.take()) is not None:
            parsed = self._parser.parse(block, Share()) if block.data else Parsed([], [], 0, 0)
            if parsed.consumed < len(block.data):
                rest = Block(block.data[parsed.consumed :], block.line + parsed.lines, False, full=block.full)
                self._cutter.put_back([rest])
            bad = [*parsed.bad, *block.bad]
            lost = chain.from_iterable(map(self._lost, sorted(bad, key=attrgetter("line"))))
            rows = heapq.merge(map(_input, parsed.rows), lost, key=attrgetter("line"))
            while group := list(islice(rows, max(GROUP, len(parsed.rows)))):
                yield group
        self._cutter.close()

    def _lost(self, bad: BadRow) -> Iterator[Input]:
        """A broken record of several lines is one row; of a Parquet file, each of the rows that are lost is one."""
        problem = f"{bad.reason}; it begins: {bad.excerpt}" if bad.excerpt else bad.reason
        count = bad.lines if self._parser.name == "parquet" else 1
        return map(Input, range(bad.line - count + 1, bad.line + 1), repeat(""), repeat(problem))


def open_inputs(name: str, kind: str | None = None, reading: Reading | None = None, *, keep: bool = False) -> Inputs:
    """Opens a file, or ``-`` for the standard input.

    Args:
        kind: one of ``KINDS``; ``None``: by the file's name, and lines where that tells nothing.
        reading: header and columns of a table; its ``format`` is not looked at.
        keep: rows carry the values of all their columns.

    Raises:
        UserError: it cannot be read, or it is not clear which column is the text.
    """
    path = None if name == PIPE else Path(name)
    if path is not None and not path.exists():
        raise UserError(f"{name} does not exist", remedy="give a file, or - for the standard input")
    if path is not None and path.is_dir():
        raise UserError(f"{name} is a folder", remedy="give one of its files")
    kind = kind or (by_suffix(path) if path else None) or LINES
    # An empty label: none is looked for, a column that holds one is no text.
    source = Source(path, name, format=kind, label="")
    return Inputs(*open_source(source, reading or Reading(), keep=keep, live=True))


def _input(row: Row) -> Input:
    try:
        check_text(row.text)
    except ValueError as error:
        return Input(row.line, "", str(error), row.cells)
    return Input(row.line, row.text, "", row.cells)
