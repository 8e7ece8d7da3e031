"""Cutting of a stream into blocks at line ends, or at record ends if quoted fields may contain line ends."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from crepe_dist.preparing.formats.rows import BLOCK, BadRow, Block, excerpt, too_long
from crepe_dist.preparing.formats.stream import Stream


class LineCutter:
    """Cutter of a stream into blocks of whole records, about ``BLOCK`` bytes each.

    A ``quoted`` stream is cut at line ends with an even number of quotes before them. A stray quote breaks this rule:
    the parser then consumes only a part of the block, and the rest and all later blocks are ``put_back``. The next
    block is as long as possible, the parser finds the end of its last record, and counting of quotes starts again after
    it. The division into records therefore does not depend on the cuts.

    Attributes:
        quoted: line ends inside quoted fields do not end a record.

    Args:
        live: yield the records that have arrived from a pipe, instead of waiting until they fill a block.
    """

    def __init__(self, stream: Stream, *, live: bool = False) -> None:
        self._stream = stream
        self.quoted = False
        self._line = 1
        self._ended = False
        self._buffer = b""
        self._before: deque[Block] = deque()  # blocks put back, which precede the buffer
        self._counts = True  # count quotes in the next cut, if the stream is quoted
        self._live = live and stream.live
        self._enough = 0  # minimum size of a block in bytes: the parser could not use a shorter one
        self._fill()

    @property
    def head(self) -> bytes:
        """The next bytes, up to ``BLOCK``, without consuming them; from a live stream, those that have arrived."""
        return self._buffer

    def look(self, lines: int) -> None:
        """Wait until ``head`` contains this many lines, or the stream ends."""
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
        """Skip lines, such as a header and the lines before it."""
        for _ in range(count):
            end = self._buffer.find(b"\n") + 1
            self._buffer = self._buffer[end:] if end else b""
        self._line += count

    def take(self) -> Block | None:
        """Return the next block; ``None`` at the end. A block with an unreadable line contains nothing else."""
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
        """Put back the blocks taken last; the front of the first one may have been consumed."""
        self._counts = blocks[0].full
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
        # No record spans a skipped line, so the block before one is final.
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
        """Tell whether the buffer contains whole records, judging by the quotes."""
        end = self._buffer.rfind(b"\n") + 1
        odd = self.quoted and self._counts and self._buffer.count(b'"', 0, end) % 2
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
        # The last line is incomplete, so report it as lost.
        rest, self._buffer, self._stream.problem = self._buffer, b"", ""
        return Block(b"", self._line, True, (BadRow(self._line, problem, excerpt(rest)),))

    def _cut(self, window: bytes) -> tuple[int, bool]:
        """Return the end of the window's last record (0 without a line end), and whether it is the last line end."""
        last = end = window.rfind(b"\n") + 1
        counted, self._counts = self.quoted and self._counts, True
        odd = window.count(b'"', 0, end) % 2 if counted else 0
        while odd and end:
            previous = window.rfind(b"\n", 0, end - 1) + 1
            odd ^= window.count(b'"', previous, end) % 2
            end = previous
        return end or last, end in (0, last)

    def _skip_long_line(self) -> Block:
        """Skip a line that is longer than a block, and report it with an excerpt."""
        bad = BadRow(self._line, too_long(), excerpt(self._buffer))
        while (end := self._buffer.find(b"\n") + 1) == 0:
            self._buffer = self._stream.read(BLOCK)
            if not self._buffer:
                self._ended = True
                break
        self._buffer = self._buffer[end:]
        self._line += 1
        return Block(b"", self._line - 1, False, (bad,))
