"""Sequential reading of plain and gzipped files as UTF-8 in bounded memory, with the SHA-256 of the file on disk."""

from __future__ import annotations

import codecs
import hashlib
import os
import select
import stat
import sys
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from crepe_dist.errors import UserError

GZIP = b"\x1f\x8b"
ENDS_EARLY = "the gzip data"  # start of the reasons why data end early
PIECE = 1 << 18  # bytes
SALVAGE_STEP = 256  # bytes of broken gzip data that are decompressed at a time
ZEROS = 0.01  # least share of ASCII in UTF-16, such as line ends and spaces; a byte of each is 0
PAUSE = 0.005  # seconds; a fast writer has written more to its pipe after this time
UNSUPPORTED = {
    b"BZh91AY&SY": ("bzip2", "bunzip2"),
    b"\xfd7zXZ": ("xz", "unxz"),
    b"\x28\xb5\x2f\xfd": ("zstd", "unzstd"),
    b"PK\x03\x04": ("a zip archive", "unzip; a workbook of Excel is read with --input-format xlsx"),
}
MARKS = {codecs.BOM_UTF8: "utf-8", codecs.BOM_UTF16_LE: "utf-16-le", codecs.BOM_UTF16_BE: "utf-16-be"}
LOOK_AT = 1 << 14  # bytes in which UTF-16 without a mark is looked for


class Stream:
    """Reader of a file, or of the standard input if ``path`` is ``None``. Gzip is detected by its first bytes.

    Bytes that are wrong in the file's encoding become bytes that are wrong in UTF-8.

    Args:
        encoding: encoding of a file that does not begin with a byte order mark.

    Attributes:
        position: bytes of the file read so far.
        problem: reason why the data end early; empty otherwise.
        live: True for a pipe or a terminal, whose data arrive over time.

    Raises:
        UserError: The file cannot be opened, or has an unsupported compression or encoding.
    """

    refused: Mapping[bytes, tuple[str, str]] = UNSUPPORTED

    def __init__(self, path: Path | None, encoding: str = "utf-8") -> None:
        self._encoding = encoding
        self._decoder_of_text: Any = None  # decoder of text that is not in UTF-8
        self._begins = True
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
        while any(magic.startswith(self._raw) for magic in (GZIP, *UNSUPPORTED)) and (data := self._read_raw()):
            self._raw += data
        for magic, (name, remedy) in self.refused.items():
            if self._raw.startswith(magic):
                raise UserError(
                    f"{self._name} is {name}", "only plain files and .gz can be read", f"convert it first: {remedy}"
                )
        self._gzip = self._raw.startswith(GZIP)
        self._decoder = zlib.decompressobj(31)

    def _begin(self, data: bytes) -> bytes:
        """Detect the encoding; return the first decompressed bytes without their mark.

        UTF-16 without a mark has zeros at every other place.
        """
        mark = next(filter(data.startswith, MARKS), b"")
        encoding = MARKS.get(mark, self._encoding)
        even, odd = (data[start:LOOK_AT:2].count(0) for start in (0, 1))
        if encoding == "utf-8" and min(even, odd) == 0 and max(even, odd) >= max(3, ZEROS * len(data[:LOOK_AT]) / 2):
            encoding = "utf-16-le" if odd else "utf-16-be"
        if encoding != "utf-8":
            self._errors = "surrogatepass" if encoding.startswith("utf") else "surrogateescape"
            self._decoder_of_text = codecs.getincrementaldecoder(encoding)(self._errors)
        return data[len(mark) :]

    def read(self, size: int) -> bytes:
        """Read ``size`` bytes, up to three times as many if they are not in UTF-8, or fewer at the end."""
        pieces = []
        while size > 0 and (piece := self.read_some(size)):
            pieces.append(piece)
            size -= len(piece)
        return b"".join(pieces)

    def read_some(self, size: int) -> bytes:
        """Read the bytes that are available, from one to ``size`` before they are converted; none at the end."""
        read = self._gunzip if self._gzip else self._plain
        data = read(size)
        if self._begins:
            while any(mark.startswith(data) for mark in MARKS) and (more := read(size)):
                data += more
            self._begins, data = False, self._begin(data)
        return self._converted(data, read, size) if self._decoder_of_text else data

    def _converted(self, data: bytes, read: Callable[[int], bytes], size: int) -> bytes:
        try:
            while not (text := self._decoder_of_text.decode(data)) and data:
                data = read(size)
        except UnicodeError as error:
            remedy = "check --encoding, or convert it first"
            raise UserError(f"{self._name} cannot be read as {self._encoding}", str(error)[:300], remedy) from error
        if not data and self._decoder_of_text.getstate()[0]:  # the last character is incomplete
            self._decoder_of_text.reset()
            return b"\xff"
        return bytes(text.encode("utf-8", self._errors))

    def waits(self) -> bool:
        """Tell whether a read would block for longer than ``PAUSE``."""
        if not self.live or self._raw or self._decoder.unconsumed_tail:
            return False
        return not select.select([self._file], [], [], PAUSE)[0]

    def close(self) -> None:
        """Close the file; the standard input stays open."""
        if self._file is not sys.stdin.buffer:
            self._file.close()

    def sha256(self) -> str:
        """Read to the end and return the SHA-256 of the whole file, including bytes after broken gzip data."""
        while self._read_raw():
            pass
        return self._digest.hexdigest()

    def _read_raw(self) -> bytes:
        try:
            data: bytes = self._file.read1(PIECE)  # returns what a pipe holds, without waiting for more
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
        """Decompress some bytes. A file may contain several gzip members, with zeros after them."""
        while not self.problem:
            if self._decoder.eof:
                self._raw = self._decoder.unused_data.lstrip(b"\0")
                while not self._raw:
                    if not (data := self._read_raw()):
                        return b""
                    self._raw = data.lstrip(b"\0")
                self._decoder = zlib.decompressobj(31)
                if not GZIP.startswith(self._raw[:2]):
                    self.problem = "other data follow the compressed ones"
                    return b""
            data = self._decoder.unconsumed_tail or self._raw or self._read_raw()
            self._raw = b""
            if not data:
                self.problem = f"{ENDS_EARLY} are truncated"
                return self._decoder.flush()
            before = self._decoder.copy()
            try:
                piece = self._decoder.decompress(data, size)
            except zlib.error as error:
                self.problem = f"{ENDS_EARLY} are broken: {error}"
                return _salvaged(before, data)
            if piece:
                return piece
        return b""


def _is_live(file: Any) -> bool:
    try:
        return not stat.S_ISREG(os.fstat(file.fileno()).st_mode)
    except OSError:  # not backed by a file descriptor
        return False


def _salvaged(decoder: Any, data: bytes) -> bytes:
    """Decompress broken data in small steps, up to the error."""
    pieces: list[bytes] = []
    for start in range(0, len(data), SALVAGE_STEP):
        try:
            pieces.append(decoder.decompress(data[start : start + SALVAGE_STEP], PIECE))
        except zlib.error:
            break
    return b"".join(pieces)
