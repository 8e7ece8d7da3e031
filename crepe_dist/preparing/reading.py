"""Reading of sources into a spool: this process reads batches, which workers parse and check, and writes their rows."""

from __future__ import annotations

import json
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from crepe_dist.data.alphabet import Encoding
from crepe_dist.data.dataset import UNLABELLED
from crepe_dist.data.targets import ONE
from crepe_dist.errors import UserError
from crepe_dist.preparing.auto_encoding import Fit
from crepe_dist.preparing.checking import BatchRows, Rules, read_batch
from crepe_dist.preparing.formats import OpenFile, excerpt
from crepe_dist.preparing.opening import open_source, reading_like
from crepe_dist.preparing.pool import Workers
from crepe_dist.preparing.selection import SplitOptions
from crepe_dist.preparing.sources import Reading, Source
from crepe_dist.preparing.spool import BAD_ROWS, ROWS, Rows, SomeRows

MAX_CLASSES = 1 << 16
MAX_SETS = 1 << 24  # different sets of labels
MAX_REASON = 300  # characters


@dataclass(frozen=True)
class Job:
    """Description of a preparation.

    Args:
        sources: name and split of each source.
        reading: reading options, with the names of the labels 1 … C if a file gives them.
        encoding: encoding before fitting.
        max_bad: maximum fraction of unusable lines.
        classes: classes of the model that all rows are to score; ``None``: those of the training rows.
    """

    sources: tuple[tuple[str, str], ...]
    reading: Reading
    encoding: Encoding
    fit: Fit
    split: SplitOptions
    max_bad: float
    classes: tuple[str, ...] | None = None

    @property
    def labelled(self) -> str:
        """Labels of a row, one of ``targets.KINDS``."""
        return self.reading.labelling.kind


@dataclass(frozen=True)
class Collected:
    """Everything that was read.

    Args:
        rows: records in the order of (file, line).
        rows_path: file that ``rows`` is mapped from.
        labels: label names that the rows' labels index.
        good: usable rows of each label.
        files: format, row counts and checksum of each source, by index.
        bad_rows: records of unusable rows, in the order of (file, line).
        corrected: what corrections did, see ``corrections.correct``; ``None`` if there were none.
    """

    rows: Rows
    rows_path: Path
    texts: Sequence[Path]
    labels: list[str]
    good: Counter[str]
    files: dict[int, dict[str, Any]]
    bad_rows: Iterator[dict[str, Any]]
    bad: int
    corrected: dict[str, Any] | None = None

    def some(self, chosen: npt.NDArray[np.int64]) -> SomeRows:
        """Choose rows by their indices, int64 [n]."""
        return SomeRows(self.rows_path, tuple(self.texts), chosen)


@dataclass
class FileCount:
    """Counts and facts of one source, for the report."""

    format: str
    reads: str
    label: str
    texts: list[str]
    rows: int = 0
    bad: int = 0
    bytes: int = 0
    sha256: str = ""


@dataclass
class Reader:
    """Reader of sources into a spool folder.

    Attributes:
        labels: index of each label, in the order of appearance.
        good: usable rows of each label.
        files: counts of each source read, by index.
        texts: names of the files of texts.
    """

    sources: Sequence[Source]
    rules: Rules
    labels: dict[str, int] = field(default_factory=dict)
    good: Counter[str] = field(default_factory=Counter)
    files: dict[int, FileCount] = field(default_factory=dict)
    texts: list[str] = field(default_factory=list)
    bad: int = 0

    def read(self, workers: Workers) -> Iterator[int]:
        """Read all sources; yield the number of bytes read so far."""
        folder = self.rules.folder
        with (folder / ROWS).open("wb") as rows, (folder / BAD_ROWS).open("w", encoding="utf-8") as bad:
            for file, batch in self._in_order(workers):
                self._record(file, batch, rows, bad)
                yield sum(count.bytes for count in self.files.values())

    def _record(self, file: int, batch: BatchRows, rows: Any, bad: Any) -> None:
        count = self.files[file]
        for row in batch.bad:
            record = {"file": self.sources[file].name, "source": file, **row._asdict()}
            record["reason"] = excerpt(row.reason, MAX_REASON)
            bad.write(json.dumps(record, ensure_ascii=False) + "\n")
            count.bad += row.lines
            self.bad += row.lines
        for label, good in zip(batch.labels, batch.good):
            self.labels.setdefault(label, len(self.labels))
            self.good[label] += good
            count.rows += good
        if len(self.labels) > (MAX_CLASSES if self.rules.reading.labelling.kind == ONE else MAX_SETS):
            raise UserError(
                f"more than {MAX_CLASSES:,} different labels in {self.sources[file].name}",
                f"read as {count.reads[:200]}; the last is {list(self.labels)[-1][:40]!r}",
                "if this is not the label, name its column: --label COLUMN, by name or number (--label 3 --text 2)",
            )
        if batch.texts not in self.texts:
            self.texts.append(batch.texts)
        if len(batch.rows):
            numbers = np.array([self.labels[label] for label in batch.labels], dtype=np.int32)
            batch.rows["label"] = numbers[batch.rows["label"]]
            batch.rows["texts"] = self.texts.index(batch.texts)
            rows.write(batch.rows.tobytes())

    def _in_order(self, workers: Workers) -> Iterator[tuple[int, BatchRows]]:
        """Yield the rows of each batch with the index of its source, in order, while workers check the next ones."""
        waiting: deque[tuple[int, Future[BatchRows]]] = deque()
        for file, opened in self._opened():
            count, part = self.files[file], self.sources[file].part
            for batch in opened.checked():
                task = workers.executor.submit(read_batch, self.rules, file, part, opened.parse, batch)
                waiting.append((file, task))
                count.bytes = opened.file.position
                if len(waiting) >= workers.ahead:
                    done, first = waiting.popleft()
                    yield done, first.result()
            count.sha256, count.bytes = opened.file.sha256(), opened.file.position
            opened.file.close()
        for file, task in waiting:
            yield file, task.result()

    def _opened(self) -> Iterator[tuple[int, OpenFile]]:
        """Open the sources one by one.

        Unlabelled texts are read like the first training file, so that both have the same columns.
        """
        first = next((source for source in self.sources if source.part == "train"), self.sources[0])
        reading = of_unlabelled = self.rules.reading
        for file, source in enumerate(self.sources):
            opened = open_source(source, of_unlabelled if source.part == UNLABELLED else reading)
            if source is first:  # those without labels are the last of all
                of_unlabelled = reading_like(reading, opened)
            self.files[file] = FileCount(opened.format, opened.reads, opened.label, list(opened.texts))
            yield file, opened
