"""Cuts a stream into blocks at ends of lines, or at ends of records where a quoted field may hold line ends."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from crepe_dist.preparing.formats.rows import BLOCK, BadRow, Block, excerpt, too_long
from crepe_dist.preparing.formats.stream import Stream

BOM = b"\xef\xbb\xbf"


class LineCutter:
    """Blocks of whole records, about ``BLOCK`` bytes each.

    A cut of a ``quoted`` stream is a line end with an even number of quotes before it. A stray quote makes that wrong:
    the parser then consumes less than the block, and what is left, and what was cut behind it, is ``put_back``. The
    next block is then as long as can be, and the parser says where its last record ends; after it, quotes are counted
    anew. So what is a record does not depend on where it was cut.

    Args:
        live: blocks of a pipe hold the records that are there; it does not wait for as many as fill a block.
    """

    def __init__(self, stream: Stream, *, quoted: bool, live: bool = False) -> None:
        self._stream = stream
        self._quoted = quoted
        self._line = 1
        self._ended = False
        self._buffer = b""
        self._before: deque[Block] = deque()  # what was put back and comes before the buffer
        self._count = quoted  # cut where quotes are even
        self._live = live and stream.live
        self._enough = 0  # bytes that a block must have, since with fewer it could not be parsed
        self._fill()
        if self._buffer.startswith(BOM):
            self._buffer = self._buffer[len(BOM) :]

    @property
    def head(self) -> bytes:
        """The first bytes, up to ``BLOCK``, without taking them; of what is live, those that have come."""
        return self._buffer

    def look(self, lines: int) -> None:
        """Waits until so many lines stand in the ``head``, if there are so many."""
        while self._live and self._buffer.count(b"\n") < lines and not self._ended and len(self._buffer) < BLOCK:
            self._read_some()

    @property
    def position(self) -> int:
        return self._stream.position

    def sha256(self) -> str:
        return self._stream.sha256()

    def close(self) -> None:
        self._stream.close()

    def skip_lines(self, count: int) -> None:
        """Drops the first lines: a header and what stands before it."""
        for _ in range(count):
            end = self._buffer.find(b"\n") + 1
            self._buffer = self._buffer[end:] if end else b""
        self._line += count

    def take(self) -> Block | None:
        """The next block; ``None`` at the end. A block that holds a bad line holds nothing else."""
        if not self._before:
            self._fill()
            self._enough = 0
            if self._ended and len(self._buffer) <= BLOCK:
                return self._last()
            end, full = self._cut(self._buffer[:BLOCK])
            return self._block(end, full) if end else self._skip_long_line()
        block = self._before.popleft()
        if len(block.data) <= BLOCK:
            return block
        end, full = self._cut(block.data[:BLOCK])
        rest = block.line + block.data.count(b"\n", 0, end)
        self._before.appendleft(Block(block.data[end:], rest, block.final))
        return Block(block.data[:end], block.line, False, full=full)

    def put_back(self, blocks: Sequence[Block]) -> None:
        """Takes back the blocks that were taken last, the first of them perhaps shortened from its front."""
        self._count = self._quoted and blocks[0].full
        merged: list[Block] = []
        for block in (*blocks, *self._before):
            if merged and not merged[-1].bad and not block.bad:
                merged[-1] = Block(merged[-1].data + block.data, merged[-1].line, False)
            else:
                merged.append(block)
        if merged and not merged[-1].bad:
            last = merged.pop()
            self._buffer = last.data + self._buffer
            self._line = last.line
            self._enough = len(self._buffer) + 1
        # Nothing reaches over a line that was left out, so what stands before it is the end of something.
        self._before = deque(block._replace(final=True) for block in merged)

    def _fill(self) -> None:
        if self._live:
            while not self._ended and len(self._buffer) < BLOCK and (not self._is_enough() or not self._stream.waits()):
                self._read_some()
        elif not self._ended and len(self._buffer) < BLOCK:
            self._buffer += self._stream.read(BLOCK - len(self._buffer))
            self._ended = len(self._buffer) < BLOCK

    def _read_some(self) -> None:
        piece = self._stream.read_some(BLOCK - len(self._buffer))
        self._buffer += piece
        self._ended = not piece

    def _is_enough(self) -> bool:
        """Whether whole records are there, as far as quotes tell."""
        end = self._buffer.rfind(b"\n") + 1
        odd = self._count and self._buffer.count(b'"', 0, end) % 2
        return bool(end) and not odd and len(self._buffer) >= self._enough

    def _block(self, end: int, full: bool = False) -> Block:
        data, self._buffer = self._buffer[:end], self._buffer[end:]
        block = Block(data, self._line, self._ended and not self._buffer, full=full)
        self._line += data.count(b"\n")
        return block

    def _last(self) -> Block | None:
        problem = self._stream.problem
        if not problem:
            return self._block(len(self._buffer)) if self._buffer else None
        end = self._buffer.rfind(b"\n") + 1
        if end:
            return self._block(end)._replace(final=True)
        # The line that was cut off is part of what is lost.
        rest, self._buffer, self._stream.problem = self._buffer, b"", ""
        return Block(b"", self._line, True, (BadRow(self._line, problem, excerpt(rest)),))

    def _cut(self, window: bytes) -> tuple[int, bool]:
        """Where the last record of the window ends, and whether that is its last line end; 0 without a line end."""
        last = end = window.rfind(b"\n") + 1
        counted, self._count = self._count, self._quoted
        odd = window.count(b'"', 0, end) % 2 if counted else 0
        while odd and end:
            previous = window.rfind(b"\n", 0, end - 1) + 1
            odd ^= window.count(b'"', previous, end) % 2
            end = previous
        return end or last, end in (0, last)

    def _skip_long_line(self) -> Block:
        """A line that fills a block is not kept in memory; its beginning is."""
        bad = BadRow(self._line, too_long(), excerpt(self._buffer))
        while (end := self._buffer.find(b"\n") + 1) == 0:
            self._buffer = self._stream.read(BLOCK)
            if not self._buffer:
                self._ended = True
                break
        self._buffer = self._buffer[end:]
        self._line += 1
        return Block(b"", self._line - 1, False, (bad,))
