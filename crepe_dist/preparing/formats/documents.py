"""Folders whose files are the documents of one class."""

from __future__ import annotations

import hashlib
import os
import shlex
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from crepe_dist.errors import UserError
from crepe_dist.files import printable, sha256
from crepe_dist.preparing.formats.lines import Lines
from crepe_dist.preparing.formats.rows import (
    BLOCK,
    EMPTY,
    MAX_RECORD,
    TOO_LONG,
    BadRow,
    Batch,
    OpenFile,
    Parsed,
    Row,
    excerpt,
)

FILES = 256  # per batch


def open_documents(path: Path, name: str, label: str, encoding: str) -> OpenFile:
    """Open a class folder. A document's "line" is its number in the sorted folder."""
    folder = Documents(path)
    return OpenFile(name, folder, folder, partial(_parse, path, label, encoding), "folder", "text: whole files")


def _parse(folder: Path, label: str, encoding: str, batch: Batch) -> Parsed:
    result = Parsed([], [])
    for number, name in enumerate(batch.content, start=batch.line):
        try:
            result.rows.append(Row(number, label, _read(folder / name, encoding), id=name))
        except ValueError as error:
            result.bad.append(BadRow(number, str(error), excerpt(name)))
    return result


class Documents:
    """Paths of the documents of a class folder. Files count as read when they are listed."""

    def __init__(self, folder: Path) -> None:
        self.position = 0
        self._folder = folder
        self._names = list_documents(folder)

    def __iter__(self) -> Iterator[Batch]:
        start = size = 0
        for end, name in enumerate(self._names, start=1):
            size += (self._folder / name).stat().st_size
            if end - start == FILES or size >= BLOCK or end == len(self._names):
                self.position += size
                yield Batch(start + 1, self._names[start:end], size)
                start, size = end, 0

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
        lines = Lines(path, encoding)
        data = lines.read(MAX_RECORD + 1)
    except UserError as error:
        raise ValueError(f"unreadable: it {error.what.removeprefix(str(path)).strip()}") from None
    lines.close()
    if len(data) > MAX_RECORD:
        raise ValueError(TOO_LONG)
    if lines.problem:
        raise ValueError(lines.problem)
    try:
        text = data.decode("utf-8").strip()
    except UnicodeDecodeError:
        raise ValueError("not UTF-8") from None
    if not text:
        raise ValueError(EMPTY)
    return text
