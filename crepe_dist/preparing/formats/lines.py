"""Reading of files that consist of lines. The files may be gzipped. Their content is converted to UTF-8 and split into
batches of whole lines, in bounded memory.

This module also parses two formats with one document per line: plain texts, and the training files of fastText.
"""

import codecs
import gzip
import hashlib
import os
import stat
import sys
import zlib
from collections.abc import Iterator
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from crepe_dist.errors import UserError
from crepe_dist.preparing.formats import (
    BATCH_BYTES,
    EXCERPT,
    MAX_RECORD,
    InvalidRow,
    OpenFile,
    Parsed,
    RawBatch,
    Row,
    excerpt,
    parse_rows,
)
from crepe_dist.preparing.label_parsing import FASTTEXT, fasttext_labels_to_cell
from crepe_dist.settings.flags import UTF_8

# First bytes of a gzipped file.
GZIP_MAGIC = b"\x1f\x8b"
# Start of the reasons why a gzipped file ends early.
DAMAGED_GZIP = "the gzip data"
# Size of a read from a file in bytes.
PIECE = 1 << 18
# First bytes of unsupported formats, mapped to the name of the format and the program that unpacks it.
UNSUPPORTED = {
    b"BZh91AY&SY": ("bzip2", "bunzip2"),
    b"\xfd7zXZ": ("xz", "unxz"),
    b"\x28\xb5\x2f\xfd": ("zstd", "unzstd"),
    b"PK\x03\x04": ("a zip archive", "unzip; for a workbook of Excel, pass --input-format xlsx"),
}
JSON_STARTS = (b"{", b"[")
USE_UTF_8 = "pass --encoding utf-8, or save the file with a byte order mark"
SAVE_AS_UTF_8 = "save the file as UTF-8 with a byte order mark"
# Byte order marks at the start of a file, mapped to the encodings that they indicate.
BYTE_ORDER_MARKS = {
    codecs.BOM_UTF32_LE: "utf-32-le",  # This mark starts with the mark of UTF-16, so it must be tried first.
    codecs.BOM_UTF32_BE: "utf-32-be",
    codecs.BOM_UTF8: UTF_8,
    codecs.BOM_UTF16_LE: "utf-16-le",
    codecs.BOM_UTF16_BE: "utf-16-be",
}
# Error handler for decoding. It replaces bytes that are invalid in the encoding of the file with a byte that is invalid
# in UTF-8.
INVALID_BYTE = "crepe_dist.invalid_byte"
codecs.register_error(INVALID_BYTE, lambda error: ("\udcff", error.end))  # type: ignore[attr-defined]


class _Raw:
    """File object for ``gzip``. It reads a file or standard input, and computes the SHA-256 of the data."""

    def __init__(self, path: Path | None) -> None:
        self.name = str(path) if path else "standard input"
        self.position = 0
        self.digest = hashlib.sha256()
        try:
            self.file: Any = path.open("rb") if path else sys.stdin.buffer
        except AttributeError:
            raise UserError(
                "there is no standard input", remedy="name a file, or redirect data to standard input"
            ) from None
        except OSError as error:
            raise self._unreadable(error) from error
        self._head = b""  # Bytes that were inspected, but not yet returned by ``read``.
        while any(magic.startswith(self._head) for magic in (GZIP_MAGIC, *UNSUPPORTED)) and (data := self._read(PIECE)):
            self._head += data
        for magic, (name, remedy) in UNSUPPORTED.items():
            if self._head.startswith(magic):
                raise UserError(f"{self.name} is {name}", remedy=f"convert it to a plain file or .gz first: {remedy}")
        self.is_gzip = self._head.startswith(GZIP_MAGIC)

    def read(self, size: int = PIECE) -> bytes:
        """Read up to ``size`` bytes. From a pipe, return the available bytes without waiting for more."""
        if not self._head:
            return self._read(size)
        data, self._head = self._head[:size], self._head[size:]
        return data

    def _read(self, size: int) -> bytes:
        try:
            data: bytes = self.file.read1(size)
        except OSError as error:
            raise self._unreadable(error) from error
        self.position += len(data)
        self.digest.update(data)
        return data

    def _unreadable(self, error: OSError) -> UserError:
        return UserError(f"{self.name} cannot be read", error.strerror or str(error), "name another file")


class LineReader:
    """Reader of a file, or of standard input if ``path`` is ``None``, in batches of whole lines in UTF-8.

    Gzip is detected by the first bytes. Invalid bytes of the file's encoding become invalid bytes of UTF-8. A line that
    is longer than ``BATCH_BYTES`` is replaced by its start and padding, so that every parser rejects it as too long.

    Attributes:
        encoding, encoding_warning: See ``SourceFile``.
        head: Bytes that were read but not yet consumed.
        problem: Reason why the data ends early. Empty if the data is complete.

    Args:
        encoding: Encoding of a file that does not start with a byte order mark.
        json_encoding: Encoding of a file without a byte order mark that starts like JSON. If it is ``None``,
            ``encoding`` is used.
        live: If True, batches are small, and the lines that have arrived from a pipe are yielded without waiting for
            more lines.

    Raises:
        UserError: The file cannot be opened, or has an unsupported compression or encoding.
    """

    def __init__(
        self, path: Path | None, encoding: str = UTF_8, *, json_encoding: str | None = None, live: bool = False
    ) -> None:
        self._raw = _Raw(path)
        self._live = live and _is_live(self._raw.file)
        # Maximum size in bytes of a batch with more than one line.
        self._max_bytes = PIECE if live else BATCH_BYTES
        self.problem = ""
        self.encoding = encoding
        self._json_encoding = json_encoding or encoding
        self.encoding_warning = ""
        self._pieces = self._in_utf8()
        self._ended = False
        self._line = 1
        self.head = b""
        self.fill_head(1)

    @property
    def position(self) -> int:
        return self._raw.position

    def sha256(self) -> str:
        """Read to the end and return the SHA-256 of the whole file, including bytes after broken gzip data."""
        while self._raw.read():
            pass
        return self._raw.digest.hexdigest()

    def close(self) -> None:
        """Close the file; standard input stays open."""
        if self._raw.file is not sys.stdin.buffer:
            self._raw.file.close()

    def read(self, size: int) -> bytes:
        """Read at least ``size`` bytes, or fewer at the end of the file."""
        data = [self.head]
        while sum(map(len, data)) < size and (piece := next(self._pieces, b"")):
            data.append(piece)
        return b"".join(data)

    def fill_head(self, lines: int) -> None:
        """Read until ``head`` has ``BATCH_BYTES`` bytes. For a live pipe, ``lines`` lines are enough."""
        pieces, size = [self.head], len(self.head)
        count = self.head.count(b"\n")
        while size < BATCH_BYTES and not self._ended and not (self._live and count >= lines):
            pieces.append(next(self._pieces, b""))
            self._ended = not pieces[-1]
            size += len(pieces[-1])
            count += pieces[-1].count(b"\n")
        self.head = b"".join(pieces)

    def skip_lines(self, count: int) -> None:
        """Skip lines, such as the header and the lines above it."""
        for _ in range(count):
            end = self.head.find(b"\n") + 1
            self.head = self.head[end:] if end else b""
        self._line += count

    def __iter__(self) -> Iterator[RawBatch]:
        while True:
            self.fill_head(1)
            end = self.head.rfind(b"\n", 0, self._max_bytes) + 1 or self.head.rfind(b"\n") + 1
            if self._ended and not self.problem and (not end or len(self.head) <= self._max_bytes):
                end = len(self.head)
            if end:
                data, self.head = self.head[:end], self.head[end:]
                yield RawBatch(self._line, data, end)
                self._line += data.count(b"\n")
            elif not self._ended:
                self._shorten_line()
            else:
                break
        if self.problem:  # The last line is incomplete, so it is reported as lost.
            yield RawBatch(self._line, b"", 0, (InvalidRow(self._line, self.problem, excerpt(self.head)),))

    def _shorten_line(self) -> None:
        # Quotes are removed. Otherwise, a CSV parser could read the next lines as part of a quoted field.
        start = self.head[:EXCERPT].replace(b'"', b"")
        while (end := self.head.find(b"\n")) < 0 and not self._ended:
            self.head = next(self._pieces, b"")
            self._ended = not self.head
        self.head = start + b"x" * MAX_RECORD + (self.head[end:] if end >= 0 else b"\n")

    def _decompressed(self) -> Iterator[bytes]:
        source: Any = gzip.GzipFile(fileobj=self._raw) if self._raw.is_gzip else self._raw  # type: ignore[call-overload]
        try:
            while data := source.read(PIECE) if source is self._raw else source.read1(PIECE):
                yield data
        except EOFError:
            self.problem = f"{DAMAGED_GZIP} are truncated"
        except (gzip.BadGzipFile, zlib.error) as error:
            self.problem = f"{DAMAGED_GZIP} are broken: {error}"

    def _in_utf8(self) -> Iterator[bytes]:
        """Yield the decompressed bytes, converted to UTF-8."""
        pieces = self._decompressed()
        first = next(pieces, b"")
        while any(mark.startswith(first) for mark in BYTE_ORDER_MARKS) and (piece := next(pieces, b"")):
            first += piece
        mark = next(filter(first.startswith, BYTE_ORDER_MARKS), b"")
        is_json = first.lstrip().startswith(JSON_STARTS)
        encoding = self.encoding = BYTE_ORDER_MARKS.get(mark, self._json_encoding if is_json else self.encoding)
        pieces = chain([first[len(mark) :]] if len(first) > len(mark) else [], pieces)
        if encoding == UTF_8:
            yield from pieces
            return
        decoder = codecs.getincrementaldecoder(encoding)(INVALID_BYTE)
        try:
            for data in chain(pieces if mark else self._doubted(pieces), [b""]):
                if text := decoder.decode(data, final=not data):
                    yield text.encode("utf-8", "surrogateescape")
        except UnicodeError as error:
            raise UserError(
                f"{self._raw.name} cannot be read as {encoding}",
                str(error)[:300],
                "give the encoding of the file with --encoding",
            ) from error

    def _doubted(self, pieces: Iterator[bytes]) -> Iterator[bytes]:
        """Set ``encoding_warning`` if the first non-ASCII characters are valid UTF-8.

        Text in another encoding is hardly ever valid UTF-8 by chance.
        """
        decoder, is_open = codecs.getincrementaldecoder(UTF_8)(), True
        for data in pieces:
            if is_open and not data.isascii():
                try:
                    # A character that is cut at the end of the piece continues in the next piece.
                    is_open = decoder.decode(data).isascii()
                except UnicodeDecodeError:
                    is_open = False
                else:
                    self.encoding_warning = (
                        "" if is_open else f"is valid UTF-8, but is read as {self.encoding}; {USE_UTF_8}"
                    )
            yield data


def _is_live(file: Any) -> bool:
    try:
        return not stat.S_ISREG(os.fstat(file.fileno()).st_mode)
    except OSError:  # The object has no file descriptor.
        return False


def number_lines(batch: RawBatch, errors: str = "surrogateescape") -> Iterator[tuple[int, str]]:
    """Yield the number and the text of each line in a batch. By default, invalid bytes become lone surrogates."""
    lines = batch.content.decode("utf-8", errors).removesuffix("\n").split("\n") if batch.content else []
    return enumerate(lines, start=batch.line)


def open_lines(lines: LineReader, name: str, *, keep_cells: bool, strict: bool) -> OpenFile:
    """Open a file of plain texts. Every line is a row.

    Args:
        keep_cells: If True, ``Row.cells`` contains the text.
        strict: True for training: empty lines are skipped, and rows with invalid bytes are rejected. False for
            prediction: empty lines are rows, and invalid bytes become "�".
    """
    parse = partial(_parse_lines, keep_cells, strict)
    batches = lines if strict else _check_encoding(lines)
    return OpenFile(name, lines, batches, parse, "lines", "text: whole lines", kept_columns=("text",) * keep_cells)


def _check_encoding(lines: LineReader) -> Iterator[RawBatch]:
    """Yield the batches of ``lines``. Set ``lines.encoding_warning`` at the first batch that contains invalid bytes.

    The invalid bytes are not removed here, because they are later read as unknown characters.
    """
    for batch in lines:
        if not lines.encoding_warning and not batch.content.isascii():
            try:
                batch.content.decode(UTF_8)
            except UnicodeDecodeError:
                lines.encoding_warning = (
                    f"has bytes that are not {lines.encoding}, which are read as unknown characters; {SAVE_AS_UTF_8}"
                )
        yield batch


def _parse_lines(keep: bool, strict: bool, batch: RawBatch) -> Parsed:
    def row(number: int, line: str) -> Row | None:
        text = line.rstrip("\r")
        return None if strict and not text.strip() else Row(number, "", text, (text,) * keep)

    return parse_rows(number_lines(batch, "surrogateescape" if strict else "replace"), row)


def is_fasttext(head: bytes) -> bool:
    """Return True if the first line of a file starts with a label of fastText."""
    return head.lstrip().startswith(FASTTEXT.encode())


def open_fasttext(lines: LineReader, name: str, kind: str) -> OpenFile:
    """Open a training file of fastText, with lines such as `__label__a __label__b text`.

    Args:
        kind: Kind of the labels, one of ``targets.LABEL_KINDS``.
    """
    reads = "label: words with __label__, text: other words"
    return OpenFile(name, lines, lines, partial(_parse_fasttext, kind), "fasttext", reads)


def _parse_fasttext(kind: str, batch: RawBatch) -> Parsed:
    def row(number: int, line: str) -> Row | None:
        if not (words := line.split()):
            return None
        labels = [word for word in words if word.startswith(FASTTEXT)]
        text = " ".join(word for word in words if not word.startswith(FASTTEXT))
        return Row(number, fasttext_labels_to_cell(labels, kind), text)

    return parse_rows(number_lines(batch, "surrogateescape"), row)
