"""The spool: rows on disk between reading and selection, one fixed-size record each, and files of their texts.

A spool holds all sources, or part i of n for ``--merge``. Rows are identified by file and line, and nothing depends on
the number of reading processes, so the later selection is the same for any division of the work.
"""

from __future__ import annotations

import mmap
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from crepe_dist.data.dataset import SPOOL_MANIFEST as MANIFEST
from crepe_dist.errors import UserError, unreadable
from crepe_dist.files import identity, integer, json_lines, open_regular, read_json, sha256, sync, write_json

FORMAT = 5
ROWS = "rows.bin"
BAD_ROWS = "bad.jsonl"
Rows = npt.NDArray[Any]  # dtype ROW
ROW = np.dtype(
    [
        ("file", "<u4"),  # index of the source
        ("line", "<i8"),
        ("label", "<i4"),  # index in the spool's labels
        ("characters", "<u4"),
        ("texts", "<u2"),  # index of the file of texts
        ("offset", "<i8"),  # position of the text in it, in bytes
        ("bytes", "<u4"),
        ("id", "<u2"),  # bytes of the row's id, which follows the text
        ("exact", "<u8"),  # hash of the text
        ("near", "<u8"),  # hash of its letters and digits in lower case
        ("names_label", "?"),  # the text contains its label
        ("weight", "<f4"),
        ("html", "?"),  # the text has, or had, a tag of HTML
    ]
)
BAD_ROW = {"file": str, "line": int, "reason": str, "excerpt": str, "lines": int, "source": int}
CHUNK = 1 << 18
MAX_WEIGHT = 1e9


@dataclass(frozen=True)
class Spool:
    """A finished part of a preparation.

    Attributes:
        part: number of the part, from 1.
        job: description of the whole preparation.
        labels: label names that the rows' labels index.
        good: usable rows of each label, including rows already excluded by sampling.
        read: format, row counts and checksum of each source, by index.
        rows: memory-mapped records in the order of (file, line).
    """

    folder: Path
    part: int
    of: int
    job: dict[str, Any]
    labels: list[str]
    good: Counter[str]
    read: dict[int, dict[str, Any]]
    bad: int
    texts: list[str]
    rows: Rows

    def bad_rows(self) -> Iterator[dict[str, Any]]:
        """Yield the records of unusable rows in the order of (file, line)."""
        yield from json_lines(self.folder / BAD_ROWS, follow=False)


class Texts:
    """Reader of the texts of rows, memory-mapped from the files of a spool."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._files = [_map(path) for path in paths]

    def get(self, rows: Rows) -> list[bytes]:
        """Return the UTF-8 texts of rows."""
        return self._strings(rows, rows["offset"], rows["bytes"])

    def ids(self, rows: Rows) -> list[bytes]:
        """Return the ids of rows, in UTF-8; empty for rows without one."""
        return self._strings(rows, rows["offset"] + rows["bytes"], rows["id"])

    def _strings(self, rows: Rows, starts: Any, lengths: Any) -> list[bytes]:
        places = zip(rows["texts"].tolist(), starts.tolist(), lengths.tolist())
        return [self._files[file][start : start + length] for file, start, length in places]


def _map(path: Path) -> Any:
    with open_regular(path, follow=False) as stream:
        return mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) if path.stat().st_size else b""


def map_rows(path: Path) -> Rows:
    """Memory-map a file of row records."""
    if path.stat().st_size == 0:
        return np.zeros(0, dtype=ROW)
    with open_regular(path, follow=False) as stream:
        return np.memmap(stream, dtype=ROW, mode="r")


@dataclass(frozen=True)
class SomeRows:
    """Some rows of a spool. A worker gets their indices, and maps the files itself.

    Attributes:
        file: file of the records.
        text_files: files of the texts.
        chosen: indices of the rows, int64 [n].
    """

    file: Path
    text_files: tuple[Path, ...]
    chosen: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitem__(self, part: slice) -> SomeRows:
        return SomeRows(self.file, self.text_files, self.chosen[part])

    def records(self) -> Rows:
        """Read the records of these rows."""
        return np.asarray(map_rows(self.file)[self.chosen])

    def column(self, name: str) -> npt.NDArray[Any]:
        """Read a field of these records alone, since there may be many millions."""
        return np.asarray(map_rows(self.file)[name][self.chosen])

    def texts(self) -> Texts:
        """Map the texts of the spool."""
        return Texts(self.text_files)


def finish(folder: Path, manifest: dict[str, Any], texts: Sequence[str]) -> None:
    """Flush the files of a part to disk, then write its manifest with their checksums."""
    files = {}
    for name in (ROWS, BAD_ROWS, *texts):
        sync(folder / name)
        files[name] = identity(folder / name)
    write_json(folder / MANIFEST, {"format": FORMAT, **manifest, "texts": list(texts), "files": files})


def open_spool(folder: Path) -> Spool:
    """Open a finished part after checking its checksums and all its records.

    Raises:
        UserError: The folder is not a finished part, has another format version, or was altered.
    """
    again = "prepare this part again"
    if not (folder / MANIFEST).is_file():
        raise UserError(
            f"{folder} is not a finished part",
            f"there is no {MANIFEST} in it" if folder.is_dir() else "there is no such folder",
            "make the missing parts with --part i/n",
        )
    try:
        manifest = read_json(folder / MANIFEST, follow=False)
        version = manifest["format"]
        if version != FORMAT:
            raise UserError(
                f"{folder} has format {str(version)[:40]}; this version reads format {FORMAT}", remedy=again
            )
        texts = [str(name) for name in manifest["texts"]]
        for name in (ROWS, BAD_ROWS, *texts):
            about = manifest["files"][name]
            if Path(name).name != name:
                raise ValueError(f"{name[:80]!r} points out of the folder")
            if (folder / name).stat().st_size != about["bytes"] or sha256(folder / name, follow=False) != about[
                "sha256"
            ]:
                raise UserError(
                    f"{folder / name} was truncated or altered", f"its SHA-256 is not the one in {MANIFEST}", again
                )
        spool = Spool(
            folder,
            integer(manifest["part"], 1, name="the number of parts"),
            integer(manifest["of"], 1, name="the number of parts"),
            dict(manifest["job"]),
            [str(label) for label in manifest["labels"]],
            Counter({str(label): integer(count, name="a number of rows") for label, count in manifest["good"].items()}),
            {int(file): _read_source(about) for file, about in manifest["read"].items()},
            integer(manifest["bad"], name="a number of rows"),
            texts,
            map_rows(folder / ROWS),
        )
        _check(spool)
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        raise unreadable(folder, error, again) from error
    return spool


def _read_source(about: dict[str, Any]) -> dict[str, Any]:
    """Return the facts of a source after checking them; their order is that of ``reading.FileCount``."""
    return {
        "format": str(about["format"]),
        "reads": str(about["reads"]),
        "label": str(about["label"]),
        "texts": list(map(str, about["texts"])),
        "rows": integer(about["rows"], name="rows"),
        "bad": integer(about["bad"], name="bad"),
        "merged": list(map(str, about["merged"])),
        "bytes": integer(about["bytes"], name="bytes"),
        "sha256": str(about["sha256"]),
    }


def _check(spool: Spool) -> None:
    """Raise ``ValueError`` for counts or references out of range."""
    files, rows = len(spool.job["sources"]), spool.rows
    sizes = np.array([(spool.folder / name).stat().st_size for name in spool.texts], dtype=np.int64)
    if spool.part > spool.of or set(spool.good) - set(spool.labels):
        raise ValueError("impossible numbers of parts or rows")
    if not all(0 <= file < files for file in spool.read):
        raise ValueError("a source that does not exist")
    for start in range(0, len(rows), CHUNK):
        chunk = rows[start : start + CHUNK]
        if chunk["label"].min() < 0 or chunk["label"].max() >= len(spool.labels):
            raise ValueError("a label that does not exist")
        if chunk["file"].max() >= files or chunk["texts"].max() >= len(sizes):
            raise ValueError("a file that does not exist")
        room = sizes[chunk["texts"]] - chunk["bytes"].astype(np.int64) - chunk["id"]
        if chunk["offset"].min() < 0 or (chunk["offset"] > room).any() or chunk["bytes"].min() < 1:
            raise ValueError("a text that does not exist")
        if not (chunk["weight"] >= 0).all() or chunk["weight"].max() > MAX_WEIGHT:
            raise ValueError("a weight that is not a number from 0")
    record: Any
    for record in spool.bad_rows():
        if not isinstance(record, dict) or {name: type(value) for name, value in record.items()} != BAD_ROW:
            raise ValueError(f"{BAD_ROWS} holds records that are not bad rows")
        if record["source"] not in range(files) or record["line"] < 0 or record["lines"] < 1:
            raise ValueError("a bad row that does not exist")


def merge(spools: Sequence[Spool], labels: Sequence[str], path: Path) -> tuple[Rows, list[Path]]:
    """Merge the rows of all spools in the order of (file, line), and write the records to ``path``.

    Returns:
        The memory-mapped records, whose labels index ``labels``, and the files of their texts.
    """
    texts = [spool.folder / name for spool in spools for name in spool.texts]
    number = {label: index for index, label in enumerate(labels)}
    places = np.concatenate([np.arange(len(spool.rows), dtype=np.int64) for spool in spools])
    owner = np.repeat(np.arange(len(spools), dtype=np.int16), [len(spool.rows) for spool in spools])
    order = np.lexsort([np.concatenate([spool.rows[key] for spool in spools]) for key in ("line", "file")])
    first_text = np.cumsum([0, *(len(spool.texts) for spool in spools)])
    relabel = [np.array([number[label] for label in spool.labels], dtype=np.int32) for spool in spools]
    with path.open("wb") as stream:
        for start in range(0, len(order), CHUNK):
            rows = order[start : start + CHUNK]
            chunk = np.empty(len(rows), dtype=ROW)
            for index, spool in enumerate(spools):
                of_spool = owner[rows] == index
                taken = np.array(spool.rows[places[rows[of_spool]]])
                taken["label"] = relabel[index][taken["label"]]
                taken["texts"] += first_text[index]
                chunk[of_spool] = taken
            stream.write(chunk.tobytes())
    return map_rows(path), texts


def append_texts(folder: Path, texts: Sequence[bytes]) -> tuple[str, int]:
    """Append texts to this process's file; return its name, and the offset of the first text in bytes."""
    name = f"texts-{os.getpid()}.bin"
    with (folder / name).open("ab") as stream:
        start = stream.tell()
        stream.write(b"".join(texts))
    return name, start
