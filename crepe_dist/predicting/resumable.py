"""File of answers that a killed command resumes, and that appears when it is complete.

It grows in a hidden folder beside its place; for a URL, in the cache. A state beside it says which bytes count, and
what they are the answers to.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from crepe_dist.errors import UserError
from crepe_dist.files import LOCK, cache_folder, integer, read_json, write_json, writing
from crepe_dist.preparing import remote

ANSWERS, STATE = "answers", "state.json"
CACHED = "predictions"  # in the cache
SAVE_SECONDS = 10.0


@dataclass
class Counts:
    """Numbers of rows, and the line of the last one.

    Args:
        rows: all rows.
        dropped: rows without an answer, because their score is too low.
        long: rows of texts that are cut.
        problems: rows that are not classified, by the reason.
    """

    rows: int = 0
    dropped: int = 0
    long: int = 0
    problems: Counter[str] = field(default_factory=Counter)
    line: int = 0

    def add(self, later: Counts) -> None:
        """Count the rows that follow."""
        self.rows, self.dropped = self.rows + later.rows, self.dropped + later.dropped
        self.long, self.line = self.long + later.long, later.line or self.line
        self.problems += later.problems


class ResumableFile:
    """File of answers in a folder.

    Args:
        folder: folder for the file and its state.
        job: what decides the answers, as JSON; ``None`` if they cannot be resumed.

    Attributes:
        counts: numbers of the rows that are in the file.
        convert: writes the final file from the one that grew; ``None`` if they are the same.
    """

    convert: Callable[[Path, Path], None] | None = None

    def __init__(self, folder: Path, job: dict[str, Any] | None) -> None:
        self.counts, self.is_saved, size = Counts(), False, 0
        self._folder, self._job = folder, job
        with suppress(OSError, ValueError, KeyError, TypeError):
            saved = read_json(folder / STATE, follow=False)
            if job is not None and saved.pop("job") == job:
                size = integer(saved.pop("bytes"), most=(folder / ANSWERS).stat().st_size)
                self.counts = Counts(**{**saved, "problems": Counter(saved["problems"])})
                self.is_saved = True
        self._stream = (folder / ANSWERS).open("r+b" if size else "w+b")
        self._stream.truncate(size)
        self._stream.seek(size)
        self._due = time.monotonic() + SAVE_SECONDS

    def write(self, text: str) -> int:
        """Append text; lone surrogates, which a kept column may contain, become question marks."""
        return self._stream.write(text.encode("utf-8", "replace"))

    def flush(self) -> None:
        """Save from time to time, so that a killed command loses seconds of work."""
        if time.monotonic() >= self._due:
            self.save()

    def save(self) -> None:
        """Make sure that everything written so far, and ``counts``, survive a crash."""
        if self._job is None:
            return
        self._stream.flush()
        os.fsync(self._stream.fileno())
        write_json(self._folder / STATE, {"job": self._job, "bytes": self._stream.tell(), **vars(self.counts)})
        self.is_saved = True
        self._due = time.monotonic() + SAVE_SECONDS

    def finish(self, out: str) -> None:
        """Move the file to its place."""
        self.save()
        self._stream.close()
        done = self._folder / ANSWERS
        if self.convert is not None:
            self.convert(done, self._folder / "converted")
            done = self._folder / "converted"
        if remote.is_url(out):
            remote.upload(done, out)
        else:
            with done.open("rb") as stream:
                os.fsync(stream.fileno())
            done.replace(out)


@contextmanager
def resumable(out: str, job: dict[str, Any] | None) -> Iterator[ResumableFile]:
    """Open the file of answers that will be ``out``, a path or a URL.

    The target of a link is replaced, in the folder of the target.

    Args:
        job: what decides the answers, as JSON; an unfinished file of the same job is resumed.

    Raises:
        UserError: another process writes it.
    """
    if not remote.is_url(out):
        out = os.path.realpath(out)
        folder = Path(out).with_name(f".{Path(out).name}.partial")
    else:
        folder = cache_folder() / CACHED / hashlib.sha256(out.encode()).hexdigest()[:16]
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / LOCK).open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(
                    f"another process is writing {remote.without_secrets(out)}",
                    remedy="wait for it, or choose another --out",
                ) from None
            file = ResumableFile(folder, job)
            try:
                yield file
                file.finish(out)
            except BaseException as error:
                if not file.is_saved:
                    shutil.rmtree(folder, ignore_errors=True)
                elif isinstance(error, KeyboardInterrupt):
                    error.args = ("interrupted; run the same command again to resume",)
                raise
            shutil.rmtree(folder, ignore_errors=True)
