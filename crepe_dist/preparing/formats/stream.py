"""Sequential reading of plain and gzipped files in bounded memory, with the SHA-256 of the file on disk."""

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
ENDS_EARLY = "the gzip data"  # start of the reasons why data end early
PIECE = 1 << 18  # bytes
SALVAGE_STEP = 256  # bytes of broken gzip data that are decompressed at a time
ZEROS = 0.01  # least share of ASCII in UTF-16, such as line ends and spaces; a byte of each is 0
PAUSE = 0.005  # seconds; a fast writer has written more to its pipe after this time
ZIP = b"PK\x03\x04"
WORKBOOKS = (".xlsx", ".xlsm", ".ods")  # zip archives by their first bytes
UNSUPPORTED = {
    b"BZh91AY&SY": ("bzip2", "bunzip2"),
    b"\xfd7zXZ": ("xz", "unxz"),
    b"\x28\xb5\x2f\xfd": ("zstd", "unzstd"),
    ZIP: ("a zip archive", "unzip (and export a spreadsheet as CSV)"),
    b"\xff\xfe": ("UTF-16 text", "iconv -f UTF-16 -t UTF-8"),
    b"\xfe\xff": ("UTF-16 text", "iconv -f UTF-16 -t UTF-8"),
}


class Stream:
    """Reader of a file, or of the standard input if ``path`` is ``None``. Gzip is detected by its first bytes.

    Attributes:
        position: bytes of the file read so far.
        problem: reason why the data end early; empty otherwise.
        live: True for a pipe or a terminal, whose data arrive over time.

    Raises:
        UserError: The file cannot be opened, or has an unsupported compression or encoding.
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
        while any(magic.startswith(self._raw) for magic in (GZIP, *UNSUPPORTED)) and (data := self._read_raw()):
            self._raw += data
        if self._raw.startswith(ZIP) and path and path.suffix.lower() in WORKBOOKS:
            raise UserError(
                f"{self._name} is a workbook", "only plain files and .gz can be read", "export it as CSV (UTF-8)"
            )
        for magic, (name, remedy) in UNSUPPORTED.items():
            if self._raw.startswith(magic):
                raise UserError(
                    f"{self._name} is {name}", "only plain files and .gz can be read", f"convert it first: {remedy}"
                )
        self._gzip = self._raw.startswith(GZIP)
        self._decoder = zlib.decompressobj(31)

    def refuse_utf16(self, head: bytes) -> None:
        """Refuse UTF-16 without a byte order mark: zeros at every other place of the first decompressed bytes."""
        even, odd = (head[start::2].count(0) for start in (0, 1))
        if min(even, odd) == 0 and max(even, odd) >= max(3, ZEROS * len(head) / 2):
            raise UserError(
                f"{self._name} is UTF-16 text",
                f"{even + odd:,} of its first {len(head):,} bytes are 0, all at {'odd' if odd else 'even'} places",
                f"convert it first: iconv -f UTF-16{'LE' if odd else 'BE'} -t UTF-8",
            )

    def read(self, size: int) -> bytes:
        """Read ``size`` bytes, or fewer at the end."""
        pieces = []
        while size > 0 and (piece := self.read_some(size)):
            pieces.append(piece)
            size -= len(piece)
        return b"".join(pieces)

    def read_some(self, size: int) -> bytes:
        """Read the bytes that are available, from one to ``size``; none at the end."""
        return self._gunzip(size) if self._gzip else self._plain(size)

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
