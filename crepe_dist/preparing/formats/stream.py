"""A file's bytes, decompressed, from front to back in bounded memory, with the SHA-256 of what is on the disk."""

from __future__ import annotations

import hashlib
import os
import select
import stat
import sys
import zlib
from pathlib import Path
from typing import Any

from crepe_dist.errors import UserError

GZIP = b"\x1f\x8b"
PIECE = 1 << 18
STEP = 256
PAUSE = 0.005  # seconds in which a writer that is not slow has written more
ZIP = b"PK\x03\x04"
WORKBOOKS = (".xlsx", ".xlsm", ".ods")  # zip archives by their first bytes
FOREIGN = {
    b"BZh91AY&SY": ("bzip2", "bunzip2"),
    b"\xfd7zXZ": ("xz", "unxz"),
    b"\x28\xb5\x2f\xfd": ("zstd", "unzstd"),
    ZIP: ("a zip archive", "unzip (and export a spreadsheet as CSV)"),
    b"\xff\xfe": ("UTF-16 text", "iconv -f UTF-16 -t UTF-8"),
    b"\xfe\xff": ("UTF-16 text", "iconv -f UTF-16 -t UTF-8"),
}


class Stream:
    """Reads ``path``, or the standard input for ``None``; gzip is known by its first bytes.

    Attributes:
        position: bytes taken from the file so far.
        problem: why the data end before their end, if they do; empty otherwise.
        live: it is no file but a pipe or a terminal, whose data come when they come.

    Raises:
        UserError: the file cannot be opened, or is packed in another way.
    """

    def __init__(self, path: Path | None) -> None:
        self.position = 0
        self.problem = ""
        self._name = str(path) if path else "the standard input"
        self._digest = hashlib.sha256()
        try:
            self._file: Any = path.open("rb") if path else sys.stdin.buffer
        except AttributeError:
            raise UserError("there is no standard input", remedy="name a file, or send something to the pipe") from None
        except OSError as error:
            raise UserError(
                f"{self._name} cannot be read", error.strerror or str(error), "name another file"
            ) from error
        self.live = _is_live(self._file)
        self._raw = b""
        while any(magic.startswith(self._raw) for magic in (GZIP, *FOREIGN)) and (data := self._read_raw()):
            self._raw += data
        if self._raw.startswith(ZIP) and path and path.suffix.lower() in WORKBOOKS:
            raise UserError(f"{self._name} is a workbook", "plain files and .gz are read", "export it as CSV (UTF-8)")
        for magic, (name, remedy) in FOREIGN.items():
            if self._raw.startswith(magic):
                raise UserError(f"{self._name} is {name}", "plain files and .gz are read", f"unpack it first: {remedy}")
        self._gzip = self._raw.startswith(GZIP)
        self._peeked = b""
        self._decoder = zlib.decompressobj(31)

    def peek(self, size: int) -> bytes:
        """What ``read`` will give next."""
        self._peeked = self.read(size)
        return self._peeked

    def read(self, size: int) -> bytes:
        """At most ``size`` bytes, fewer only at the end."""
        pieces, self._peeked = [self._peeked[:size]], self._peeked[size:]
        size -= len(pieces[0])
        while size > 0 and (piece := self._gunzip(size) if self._gzip else self._plain(size)):
            pieces.append(piece)
            size -= len(piece)
        return b"".join(pieces)

    def read_some(self, size: int) -> bytes:
        """At least one byte and at most ``size``: what is there; nothing at the end."""
        if self._peeked:
            return self.read(min(size, len(self._peeked)))
        return self._gunzip(size) if self._gzip else self._plain(size)

    def waits(self) -> bool:
        """Whether nothing can be read now, nor in a moment."""
        if not self.live or self._peeked or self._raw or self._decoder.unconsumed_tail:
            return False
        return not select.select([self._file], [], [], PAUSE)[0]

    def close(self) -> None:
        if self._file is not sys.stdin.buffer:
            self._file.close()

    def sha256(self) -> str:
        """Of the whole file, once it was read to its end; what follows broken data counts too."""
        while self._read_raw():
            pass
        return self._digest.hexdigest()

    def _read_raw(self) -> bytes:
        try:
            data: bytes = self._file.read1(PIECE)  # what is there of a pipe
        except OSError as error:
            raise UserError(
                f"{self._name} cannot be read", error.strerror or str(error), "name another file"
            ) from error
        self.position += len(data)
        self._digest.update(data)
        return data

    def _plain(self, size: int) -> bytes:
        data = self._raw or self._read_raw()
        self._raw = data[size:]
        return data[:size]

    def _gunzip(self, size: int) -> bytes:
        """Some decompressed bytes; one file may hold several members, and zeros behind them."""
        while not self.problem:
            if self._decoder.eof:
                self._raw = self._decoder.unused_data.lstrip(b"\0")
                while not self._raw:
                    if not (data := self._read_raw()):
                        return b""
                    self._raw = data.lstrip(b"\0")
                self._decoder = zlib.decompressobj(31)
            data = self._decoder.unconsumed_tail or self._raw or self._read_raw()
            self._raw = b""
            if not data:
                self.problem = "the gzip data end in the middle"
                return self._decoder.flush()
            before = self._decoder.copy()
            try:
                piece = self._decoder.decompress(data, size)
            except zlib.error as error:
                self.problem = f"the gzip data are broken: {error}"
                return _until_broken(before, data)
            if piece:
                return piece
        return b""


def _is_live(file: Any) -> bool:
    try:
        return not stat.S_ISREG(os.fstat(file.fileno()).st_mode)
    except OSError:  # there is no file behind it
        return False


def _until_broken(decoder: Any, data: bytes) -> bytes:
    """What can be had of a broken piece, in small steps; at most as much as a piece can hold."""
    found: list[bytes] = []
    for start in range(0, len(data), STEP):
        try:
            found.append(decoder.decompress(data[start : start + STEP], PIECE))
        except zlib.error:
            break
    return b"".join(found)
