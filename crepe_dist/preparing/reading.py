"""Reading of sources into a spool: blocks are cut in this process, parsed and checked by workers, written in order."""

from __future__ import annotations

import json
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from crepe_dist.data.dataset import UNLABELLED
from crepe_dist.data.targets import ONE
from crepe_dist.errors import UserError
from crepe_dist.preparing.checking import BlockRows, Rules, read_block
from crepe_dist.preparing.formats.rows import MAX_EXPANSION, Block, OpenFile, check_expansion, excerpt, rest_of
from crepe_dist.preparing.labelling import ABSENT
from crepe_dist.preparing.opening import open_source, reading_like
from crepe_dist.preparing.pool import Workers
from crepe_dist.preparing.selection import Reservoir
from crepe_dist.preparing.sources import Reading, Source
from crepe_dist.preparing.spool import BAD_ROWS, ROWS

MAX_CLASSES = 1 << 16
MAX_SETS = 1 << 24  # different sets of labels
MAX_REASON = 300  # characters


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
class _OpenSource:
    """A source that is being read.

    Attributes:
        waiting: blocks that are being parsed, in order.
        is_cut: all its blocks have been taken.
        expanded: bytes after decompression, so far.
    """

    file: int
    source: Source
    opened: OpenFile
    waiting: deque[tuple[Block, Future[BlockRows]]] = field(default_factory=deque)
    is_cut: bool = False
    expanded: int = 0


@dataclass
class Reader:
    """Reader of sources into a spool folder.

    Attributes:
        max_per_class: size of the sample per class; ``None`` to keep all rows.
        labels: index of each label, in the order of appearance.
        good: usable rows of each label, including rows already excluded by sampling.
        files: counts of each source read, by index.
        texts: names of the files of texts.
    """

    sources: Sequence[Source]
    rules: Rules
    max_per_class: int | None
    labels: dict[str, int] = field(default_factory=dict)
    good: Counter[str] = field(default_factory=Counter)
    files: dict[int, FileCount] = field(default_factory=dict)
    texts: list[str] = field(default_factory=list)
    bad: int = 0

    def read(self, workers: Workers) -> Iterator[int]:
        """Read all sources; yield the number of bytes read so far."""
        reservoir = None if self.max_per_class is None else Reservoir(self.max_per_class)
        folder = self.rules.folder
        with (folder / ROWS).open("wb") as rows, (folder / BAD_ROWS).open("w", encoding="utf-8") as bad:
            for source, block in self._in_order(workers, reservoir.limits if reservoir else {}):
                self._record(source, block, rows, bad)
                if reservoir and source.source.part == "train":
                    for index, label in enumerate(block.labels):
                        if label != ABSENT:
                            reservoir.add(label, block.drawn[block.rows["label"] == index])
                yield sum(count.bytes for count in self.files.values())

    def _record(self, source: _OpenSource, block: BlockRows, rows: Any, bad: Any) -> None:
        count = self.files[source.file]
        for row in block.bad:
            record = {"file": source.source.name, "source": source.file, **row._asdict()}
            record["reason"] = excerpt(row.reason, MAX_REASON)
            bad.write(json.dumps(record, ensure_ascii=False) + "\n")
            count.bad += row.lines
            self.bad += row.lines
        for label, good in zip(block.labels, block.good):
            self.labels.setdefault(label, len(self.labels))
            self.good[label] += good
            count.rows += good
        if len(self.labels) > (MAX_CLASSES if self.rules.reading.labelling.kind == ONE else MAX_SETS):
            raise UserError(
                f"more than {MAX_CLASSES:,} different labels in {source.source.name}",
                f"read as {count.reads[:200]}; the last is {list(self.labels)[-1][:40]!r}",
                "if this is not the label, name its column: --label COLUMN, by name or number (--label 3 --text 2)",
            )
        if block.texts not in self.texts:
            self.texts.append(block.texts)
        if len(block.rows):
            numbers = np.array([self.labels[label] for label in block.labels], dtype=np.int32)
            block.rows["label"] = numbers[block.rows["label"]]
            block.rows["texts"] = self.texts.index(block.texts)
            rows.write(block.rows.tobytes())

    def _in_order(self, workers: Workers, limits: dict[str, int]) -> Iterator[tuple[_OpenSource, BlockRows]]:
        """Yield the rows of each block in order.

        If a parser leaves the end of a block unused, that end and all later blocks of the source are cut again. The
        number of blocks in flight then drops to one and grows back, to limit the repeated work.
        """
        unopened, depth = self._opened(), workers.ahead
        sources: list[_OpenSource] = []
        while True:
            for source in [source for source in sources if source.is_cut and not source.waiting]:
                sources.remove(source)
                self._finish(source)
            if sum(len(source.waiting) for source in sources) < depth or not sources[0].waiting:
                uncut = next((source for source in sources if not source.is_cut), None)
                if next_source := uncut or next(unopened, None):
                    sources.extend([] if uncut else [next_source])
                    self._submit(next_source, workers.executor, limits)
                    continue
            if not sources:
                return
            source = sources[0]
            block, future = source.waiting.popleft()
            rows = future.result()
            source.expanded += rows.consumed
            name, cutter = source.source.name, source.opened.cutter
            check_expansion(name, source.expanded, cutter, MAX_EXPANSION, "write it to a plain file, as gunzip does")
            self.files[source.file].bytes = cutter.position
            yield source, rows
            depth = min(workers.ahead, 2 * depth)
            if rows.consumed < len(block.data):
                depth = 1
                rest = rest_of(block, rows.consumed, rows.lines)
                source.opened.cutter.put_back([rest, *(later for later, _ in source.waiting)])
                source.waiting.clear()
                source.is_cut = False

    def _submit(self, source: _OpenSource, executor: Executor, limits: dict[str, int]) -> None:
        """Start to parse the next block of a source, if there is one."""
        block = source.opened.cutter.take()
        source.is_cut = block is None
        if block is not None:
            most = dict(limits) if source.source.part == "train" else {}
            part = source.source.part
            task = (self.rules, source.file, part, most, source.opened.parse, block)
            source.waiting.append((block, executor.submit(read_block, *task)))

    def _finish(self, source: _OpenSource) -> None:
        """Close a source at its end."""
        count, cutter = self.files[source.file], source.opened.cutter
        count.sha256, count.bytes = cutter.sha256(), cutter.position
        cutter.close()

    def _opened(self) -> Iterator[_OpenSource]:
        """Open the sources one by one.

        Unlabelled texts are read like the first training file, so that both have the same columns.
        """
        first = next((source for source in self.sources if source.part == "train"), self.sources[0])
        reading = self.rules.reading
        of_unlabelled: Reading | None = None
        for file, source in enumerate(self.sources):
            if source.part == UNLABELLED and of_unlabelled is None:
                opened = open_source(first, reading)
                opened.cutter.close()
                of_unlabelled = reading_like(reading, opened)
            opened = open_source(source, of_unlabelled if source.part == UNLABELLED and of_unlabelled else reading)
            if source is first:
                of_unlabelled = reading_like(reading, opened)
            self.files[file] = FileCount(opened.format, opened.reads, opened.label, list(opened.texts))
            yield _OpenSource(file, source, opened)
