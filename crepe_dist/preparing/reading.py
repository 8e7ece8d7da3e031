"""Reading of sources into a spool: this process reads batches, which workers parse and check, and writes their rows."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from crepe_dist.data.alphabet import Encoding
from crepe_dist.data.dataset import UNLABELLED
from crepe_dist.data.targets import ONE
from crepe_dist.errors import UserError
from crepe_dist.preparing.auto_encoding import Fit
from crepe_dist.preparing.checking import Rules, Task, read_batch
from crepe_dist.preparing.formats import excerpt
from crepe_dist.preparing.opening import open_source, reading_like
from crepe_dist.preparing.pool import Show, Workers
from crepe_dist.preparing.selection import SplitOptions
from crepe_dist.preparing.sources import Reading, Source
from crepe_dist.preparing.spool import BAD_ROWS, ROWS, Rows, SomeRows, map_rows

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


@dataclass
class Collected:
    """Everything that was read, in a spool folder.

    Attributes:
        labels: label names that the rows' labels index, in the order of appearance.
        good: usable rows of each label.
        bad: number of unusable rows.
        files: format, row counts and checksum of each source, by index.
        texts: files of texts.
        corrected: what corrections did, see ``corrections.correct``; ``None`` if there were none.
    """

    folder: Path
    labels: list[str] = field(default_factory=list)
    good: Counter[str] = field(default_factory=Counter)
    bad: int = 0
    files: dict[int, dict[str, Any]] = field(default_factory=dict)
    texts: list[Path] = field(default_factory=list)
    corrected: dict[str, Any] | None = None

    @cached_property
    def rows(self) -> Rows:
        """Records in the order of (file, line)."""
        return map_rows(self.folder / ROWS)

    def bad_rows(self) -> Iterator[dict[str, Any]]:
        """Yield the records of unusable rows, in the order of (file, line)."""
        with (self.folder / BAD_ROWS).open(encoding="utf-8") as lines:
            yield from map(json.loads, lines)

    def some(self, chosen: npt.NDArray[np.int64]) -> SomeRows:
        """Choose rows by their indices, int64 [n]."""
        return SomeRows(self.folder / ROWS, tuple(self.texts), chosen)


def read(sources: Sequence[Source], rules: Rules, workers: Workers, show: Show) -> Collected:
    """Read sources into the spool folder of ``rules``, in order, while workers check the next batches."""
    collected, folder = Collected(rules.folder), rules.folder
    number: dict[str, int] = {}
    total = sum(source.bytes for source in sources)
    most = MAX_CLASSES if rules.reading.labelling.kind == ONE else MAX_SETS
    with (folder / ROWS).open("wb") as rows, (folder / BAD_ROWS).open("w", encoding="utf-8") as bad:
        for batch in workers.in_order(partial(read_batch, rules), _batches(sources, rules.reading, collected.files)):
            about, name = collected.files[batch.file], sources[batch.file].name
            for row in batch.bad:
                record = {"file": name, "source": batch.file, **row._asdict()}
                record["reason"] = excerpt(row.reason, MAX_REASON)
                bad.write(json.dumps(record, ensure_ascii=False) + "\n")
                about["bad"] += row.lines
                collected.bad += row.lines
            for label, good in zip(batch.labels, batch.good):
                number.setdefault(label, len(number))
                collected.good[label] += good
                about["rows"] += good
            if len(number) > most:
                raise UserError(
                    f"more than {MAX_CLASSES:,} different labels in {name}",
                    f"read as {about['reads'][:200]}; the last is {list(number)[-1][:40]!r}",
                    "if this is not the label, name its column: --label COLUMN, by name or number (--label 3 --text 2)",
                )
            if batch.texts not in collected.texts:
                collected.texts.append(batch.texts)
            if len(batch.rows):
                batch.rows["label"] = np.array([number[label] for label in batch.labels], np.int32)[batch.rows["label"]]
                batch.rows["texts"] = collected.texts.index(batch.texts)
                rows.write(batch.rows.tobytes())
            show("reading", sum(each["bytes"] for each in collected.files.values()), total)
    collected.labels = list(number)
    return collected


def _batches(sources: Sequence[Source], reading: Reading, files: dict[int, dict[str, Any]]) -> Iterator[Task]:
    """Open the sources one by one, describe them in ``files``, and yield their batches.

    Unlabelled texts are read like the first training file, so that both have the same columns.
    """
    first = next((source for source in sources if source.part == "train"), sources[0])
    of_unlabelled = reading
    for file, source in enumerate(sources):
        opened = open_source(source, of_unlabelled if source.part == UNLABELLED else reading)
        if source is first:  # those without labels are the last of all
            of_unlabelled = reading_like(reading, opened)
        about = files[file] = {
            "format": opened.format, "reads": opened.reads, "label": opened.label, "texts": list(opened.texts),
            "rows": 0, "bad": 0, "bytes": 0, "sha256": "",
        }  # fmt: skip
        for batch in opened.checked():
            about["bytes"] = opened.file.position
            yield file, source.part, opened.parse, batch
        about |= {"sha256": opened.file.sha256(), "bytes": opened.file.position}
        opened.file.close()
