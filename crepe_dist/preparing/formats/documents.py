"""Folders whose files are the documents of one class."""

from __future__ import annotations

import hashlib
import os
import shlex
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from crepe_dist.errors import UserError
from crepe_dist.files import printable, sha256
from crepe_dist.preparing.formats.rows import BLOCK, MAX_RECORD, BadRow, Block, OpenFile, Parsed, Row, excerpt, too_long
from crepe_dist.preparing.formats.stream import Stream

FILES = 256  # per block


def open_documents(folder: Path, label: str, encoding: str) -> OpenFile:
    """Open a class folder. A document's "line" is its number in the sorted folder."""
    return OpenFile(partial(_parse, folder, label, encoding), DocumentCutter(folder), "folder", "text: whole files")


def _parse(folder: Path, label: str, encoding: str, block: Block) -> Parsed:
    names = block.data.decode("utf-8", "surrogateescape").split("\0")
    result = Parsed([], [], len(block.data), len(names))
    for number, name in enumerate(names, start=block.line):
        try:
            result.rows.append(Row(number, label, _read(folder / name, encoding), id=name))
        except ValueError as error:
            result.bad.append(BadRow(number, str(error), excerpt(name)))
    return result


class DocumentCutter:
    """Cutter of a class folder into lists of paths. Files count as read when they are listed."""

    def __init__(self, folder: Path) -> None:
        self.position = 0
        self._folder = folder
        self._names = list_documents(folder)
        self._next = 0

    def take(self) -> Block | None:
        start, size = self._next, 0
        while self._next < len(self._names) and self._next - start < FILES and size < BLOCK:
            size += (self._folder / self._names[self._next]).stat().st_size
            self._next += 1
        self.position += size
        names = self._names[start : self._next]
        data = "\0".join(names).encode("utf-8", "surrogateescape")
        return Block(data, start + 1, self._next == len(self._names)) if names else None

    def put_back(self, blocks: Sequence[Block]) -> None:
        raise NotImplementedError  # blocks are consumed whole

    def sha256(self) -> str:
        """Hash all names and contents."""
        digest = hashlib.sha256()
        for name in self._names:
            digest.update(name.encode("utf-8", "surrogateescape") + b"\0")
            try:
                digest.update(bytes.fromhex(sha256(self._folder / name)))
            except (OSError, ValueError):  # the file is in quarantine
                digest.update(b"not readable")
        return digest.hexdigest()

    def close(self) -> None:
        pass


def check_link(path: Path, root: Path) -> None:
    """Refuse a symbolic link that leaves a source folder: a folder from others could name any file of this machine."""
    is_read = path.is_file() or path.is_dir()  # nothing else is
    if path.is_symlink() and is_read and not path.resolve().is_relative_to(root.resolve()):
        raise UserError(
            f"{printable(path)} is a symbolic link out of {printable(root)}",
            f"it leads to {printable(path.resolve())}",
            "delete it; or, if you trust the folder, copy what its links lead to: "
            f"cp -rL {shlex.quote(printable(root))} COPY",
        )


def list_documents(folder: Path, root: Path | None = None) -> list[str]:
    """List the visible files below ``folder``, sorted, relative to it. Each linked folder is visited only once.

    Args:
        root: folder that no symbolic link may leave; ``None`` if they were checked before.
    """
    documents: list[str] = []
    seen: set[str] = set()
    for parent, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(parent)
        folders[:] = [] if real in seen else [name for name in folders if not name.startswith(".")]
        if root is not None:
            for name in (*folders, *files):
                check_link(Path(parent, name), root)
        if real not in seen:
            documents += [
                os.path.relpath(os.path.join(parent, name), folder) for name in files if not name.startswith(".")
            ]
        seen.add(real)
    return sorted(name for name in documents if (folder / name).is_file())


def _read(path: Path, encoding: str) -> str:
    try:
        stream = Stream(path, encoding)
        data = stream.read(MAX_RECORD + 1)
    except UserError as error:
        raise ValueError(f"unreadable: it {error.what.removeprefix(str(path)).strip()}") from None
    stream.close()
    if len(data) > MAX_RECORD:
        raise ValueError(too_long())
    if stream.problem:
        raise ValueError(stream.problem)
    try:
        text = data.decode("utf-8").strip()
    except UnicodeDecodeError:
        raise ValueError("not UTF-8") from None
    if not text:
        raise ValueError("empty text")
    return text
