"""Reading of sources into a spool: blocks are cut in this process, parsed and checked by workers, written in order."""

from __future__ import annotations

import json
import re
import unicodedata
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from crepe_dist.data.markup import has_tags, without_tags
from crepe_dist.data.origins import hashes
from crepe_dist.data.targets import ONE
from crepe_dist.errors import UserError
from crepe_dist.preparing.formats.rows import BadRow, Block, Cutter, Parser, Row, Share, check_text, excerpt
from crepe_dist.preparing.labelling import Labelling, Name
from crepe_dist.preparing.selection import SAMPLE_DRAW, Reservoir, draw
from crepe_dist.preparing.sources import Reading, Source, open_source
from crepe_dist.preparing.spool import BAD_ROWS, MAX_WEIGHT, ROW, ROWS, Rows, TextWriter

MAX_LABEL = 200  # characters
MAX_ID = 200  # characters; longer ones are cut
MAX_CLASSES = 1 << 16
MAX_SETS = 1 << 24  # different sets of labels
MAX_REASON = 300  # characters
UNLABELLED = "no label"  # reason to leave out a row that is not counted as unusable: exports often contain such rows
ALWAYS_ALLOWED = 1 << 30  # decompressed bytes of a source, however small it is
_LOWER = bytes(range(256)).lower()
_NOT_ALPHANUMERIC = bytes(point for point in range(128) if not chr(point).isalnum())
_NOT_WORDS = re.compile(r"[\W_]+")


@dataclass(frozen=True)
class Task:
    """A block for a worker to parse.

    Args:
        folder: folder of the spool.
        file: index of the source.
        parser: parser of the source.
        block: block to parse.
        share: lines to keep, if several machines share the work.
        class_names: names of the labels 1 … C, if a file gives them.
        labelling: labels of the rows.
        strip_html: remove HTML tags from the texts.
        seed: seed of the sampling.
        limits: largest random number that can still be in the sample, by class.
    """

    folder: Path
    file: int
    parser: Parser
    block: Block
    share: Share
    class_names: tuple[str, ...] | None
    labelling: Labelling
    strip_html: bool
    seed: int
    limits: dict[str, int]


@dataclass(frozen=True)
class Found:
    """Result of a ``Task``.

    Attributes:
        rows: records of the usable rows within the limits; their labels index ``labels``.
        labels: label names.
        good: number of usable rows of each label, including those beyond the limits.
        drawn: random numbers of ``rows``.
        bad: unusable rows.
        consumed: bytes of the block that were used.
        lines: lines of the block that were used.
        texts: name of the file that holds the texts.
        merged: labels that were found and became another class.
    """

    rows: Rows
    labels: list[str]
    good: list[int]
    drawn: npt.NDArray[np.uint64]
    bad: list[BadRow]
    consumed: int
    lines: int
    texts: str
    merged: set[str]


def read_block(task: Task) -> Found:
    """Parse and check one block, and append its texts to this process's file. Runs in a worker."""
    parsed = task.parser.parse(task.block, task.share) if task.block.data else None
    bad = [each for each in task.block.bad if task.share.owns(each.line)]
    labels: dict[str, int] = {}
    rows: list[Row] = []
    texts: list[bytes] = []
    weights: list[float] = []
    tagged: list[bool] = []
    merged, used = dict(task.labelling.merged), set[str]()

    def name(label: str) -> str:
        label = _class_name(label, task.class_names)
        used.update([label] if label in merged else [])
        return merged.get(label, label)

    for row in parsed.rows if parsed else ():
        has_html = has_tags(row.text)
        if task.strip_html:
            row = row._replace(text=without_tags(row.text))
        try:
            label, text = _checked(row, task.labelling, name)
            weights.append(_weight(row))
        except ValueError as error:
            bad.append(BadRow(row.line, str(error), excerpt(row.text)))
        else:
            labels.setdefault(label, len(labels))
            rows.append(Row(row.line, label, row.text, id=row.id))
            texts.append(text)
            tagged.append(has_html)
    bad += parsed.bad if parsed else []
    bad.sort(key=lambda each: each.line)
    records = np.zeros(len(rows), dtype=ROW)
    records["file"] = task.file
    records["line"] = [row.line for row in rows]
    records["label"] = [labels[row.label] for row in rows]
    records["weight"] = weights
    records["html"] = tagged
    good = np.bincount(records["label"], minlength=len(labels)).tolist()
    drawn = draw(task.seed, SAMPLE_DRAW, records["file"], records["line"])
    if any(label in task.limits for label in labels):
        limits = np.array([task.limits.get(label, (1 << 64) - 1) for label in labels], dtype=np.uint64)
        kept = np.flatnonzero(drawn <= limits[records["label"]]).tolist()
        records, drawn = records[kept], drawn[kept]
        rows, texts = [rows[i] for i in kept], [texts[i] for i in kept]
    ids = [row.id[:MAX_ID].encode("utf-8", "replace") for row in rows]
    records["id"] = [len(each) for each in ids]
    writer = _writer(task.folder)
    start = writer.append([text + id_ for text, id_ in zip(texts, ids)])
    _describe(records, rows, texts, start, task.labelling.kind)
    end = (parsed.consumed, parsed.lines) if parsed else (0, 0)
    return Found(records, list(labels), good, drawn, bad, *end, writer.name, used)


def _checked(row: Row, labelling: Labelling, name: Name) -> tuple[str, bytes]:
    """Return a row's label and its text in UTF-8; raise ``ValueError`` if it is unusable."""
    text, cell = check_text(row.text), row.label.strip()
    if labelling.kind == ONE or not cell:
        return name(cell), text
    return labelling.label(cell, name), text


def _class_name(label: str, class_names: Sequence[str] | None) -> str:
    """Return the name of the class that a label means; raise ``ValueError`` if it is unusable."""
    label = label.strip()
    try:
        label.encode("utf-8")
    except UnicodeEncodeError:
        raise ValueError("not UTF-8") from None
    if not label:
        raise ValueError(UNLABELLED)
    if class_names is not None:
        if not label.isdecimal() or not 1 <= int(label) <= len(class_names):
            raise ValueError(f"unknown label: {label!r:.40} is not a number from 1 to {len(class_names)}")
        return class_names[int(label) - 1]
    if len(label) > MAX_LABEL:
        raise ValueError(f"label longer than {MAX_LABEL} characters")
    return label


def _weight(row: Row) -> float:
    """Return a row's weight, 1 if rows have none; raise ``ValueError`` if it is unusable."""
    if row.weight is None:
        return 1.0
    try:
        weight = float(row.weight)
    except ValueError:
        weight = -1.0
    if not 0 <= weight <= MAX_WEIGHT:
        raise ValueError(f"unusable weight: {row.weight!r:.40} is not a number from 0 to {MAX_WEIGHT:g}")
    return weight


def _describe(records: Rows, rows: Sequence[Row], texts: Sequence[bytes], start: int, kind: str) -> None:
    lengths = np.array([len(text) for text in texts], dtype=np.int64)
    records["bytes"] = lengths
    ends = start + np.cumsum(lengths + records["id"])
    records["offset"] = ends - lengths - records["id"]
    records["characters"] = [len(row.text) for row in rows]
    keys = [_letters(row.text, text) for row, text in zip(rows, texts)]
    if kind == ONE:
        names = {row.label: _letters(row.label, row.label.encode()) for row in rows}
        records["names_label"] = [len(names[row.label]) > 2 and names[row.label] in key for row, key in zip(rows, keys)]
    records["exact"] = hashes(texts)
    records["near"] = hashes([key or text for key, text in zip(keys, texts)])


def _letters(text: str, data: bytes) -> bytes:
    """Reduce a text to its letters and digits in lower case and compatibility form, to find near duplicates."""
    if text.isascii():
        return data.translate(_LOWER, _NOT_ALPHANUMERIC)
    return _NOT_WORDS.sub("", unicodedata.normalize("NFKC", text).casefold()).encode("utf-8")


_open_writers: dict[Path, TextWriter] = {}


def _writer(folder: Path) -> TextWriter:
    """Return this process's file of texts in the folder."""
    if folder not in _open_writers:
        close_writers()
        _open_writers[folder] = TextWriter(folder)
    return _open_writers[folder]


def close_writers() -> None:
    """Close this process's file of texts, if it is open."""
    while _open_writers:
        _open_writers.popitem()[1].close()


@dataclass
class FileCount:
    """Counts and facts of one source, for the report."""

    rows: int = 0
    bad: int = 0
    format: str = ""
    reads: str = ""
    texts: list[str] = field(default_factory=list)
    merged: list[str] = field(default_factory=list)
    bytes: int = 0
    sha256: str = ""


@dataclass
class _OpenSource:
    """A source that is being read."""

    file: int
    source: Source
    parser: Parser
    cutter: Cutter
    share: Share
    expanded: int = 0  # bytes after decompression, so far


@dataclass
class Reader:
    """Reader of sources, or a share of them, into a spool folder.

    Attributes:
        folder: folder of the spool.
        sources: sources to read.
        reading: reading options.
        class_names: names of the labels 1 … C, if a file gives them.
        seed: seed of the sampling.
        max_per_class: size of the sample per class; ``None`` to keep all rows.
        share: lines or files to read, if several machines share the work.
        max_expansion: most decompressed bytes of a source, as a multiple of its size.
        labels: index of each label, in the order of appearance.
        good: usable rows of each label, including rows already excluded by sampling.
        files: counts of each source read, by index.
        texts: names of the files of texts.
        bad: number of unusable lines.
    """

    folder: Path
    sources: Sequence[Source]
    reading: Reading
    class_names: tuple[str, ...] | None
    seed: int
    max_per_class: int | None
    share: Share
    max_expansion: float
    labels: dict[str, int] = field(default_factory=dict)
    good: Counter[str] = field(default_factory=Counter)
    files: dict[int, FileCount] = field(default_factory=dict)
    texts: list[str] = field(default_factory=list)
    bad: int = 0
    _open: dict[int, _OpenSource] = field(default_factory=dict)
    _done: int = 0

    def read(self, executor: Executor, ahead: int) -> Iterator[int]:
        """Read all sources; yield the number of bytes read so far.

        Args:
            executor: pool to parse in.
            ahead: maximum number of blocks in flight.
        """
        reservoir = None if self.max_per_class is None else Reservoir(self.max_per_class)
        limits = reservoir.limits if reservoir else {}
        with (self.folder / ROWS).open("wb") as rows, (self.folder / BAD_ROWS).open("w", encoding="utf-8") as bad:
            for opened, found in self._in_order(executor, ahead, limits):
                self._record(opened, found, rows, bad)
                if reservoir and opened.source.part == "train":
                    for index, label in enumerate(found.labels):
                        reservoir.add(label, found.drawn[found.rows["label"] == index])
                for file in [file for file in self._open if file < opened.file]:
                    self._finish(file)
                yield self._done + sum(each.cutter.position for each in self._open.values())
        for file in list(self._open):
            self._finish(file)
        close_writers()

    def _finish(self, file: int) -> None:
        """Close a source at its end."""
        cutter = self._open.pop(file).cutter
        count = self.files[file]
        count.sha256, count.bytes = cutter.sha256(), cutter.position
        cutter.close()
        self._done += count.bytes

    def _record(self, opened: _OpenSource, found: Found, rows: Any, bad: Any) -> None:
        count = self.files[opened.file]
        for each in found.bad:
            record = {"file": opened.source.name, "source": opened.file, **each._asdict()}
            record["reason"] = excerpt(each.reason, MAX_REASON)
            bad.write(json.dumps(record, ensure_ascii=False) + "\n")
            count.bad += each.lines
            self.bad += each.lines
        count.merged = sorted(found.merged.union(count.merged))
        for label, good in zip(found.labels, found.good):
            self.labels.setdefault(label, len(self.labels))
            self.good[label] += good
            count.rows += good
        if len(self.labels) > (MAX_CLASSES if self.reading.labelling.kind == ONE else MAX_SETS):
            raise UserError(
                f"more than {MAX_CLASSES:,} different labels in {opened.source.name}",
                f"read as {count.reads[:200]}; the last is {list(self.labels)[-1][:40]!r}",
                "if this is not the label, name its column: --label COLUMN, by name or number (--label 3 --text 2)",
            )
        if found.texts not in self.texts:
            self.texts.append(found.texts)
        if len(found.rows):
            numbers = np.array([self.labels[label] for label in found.labels], dtype=np.int32)
            found.rows["label"] = numbers[found.rows["label"]]
            found.rows["texts"] = self.texts.index(found.texts)
            rows.write(found.rows.tobytes())

    def _in_order(self, executor: Executor, ahead: int, limits: dict[str, int]) -> Iterator[tuple[_OpenSource, Found]]:
        """Yield the result of each block in order.

        If a parser leaves the end of a block unused, that end and all later blocks are cut again. The number of blocks
        in flight then drops to one and grows back, to limit the repeated work.
        """
        waiting: deque[tuple[_OpenSource, Block, Future[Found]]] = deque()
        opened = self._opened()
        current = next(opened, None)
        put_back: deque[_OpenSource] = deque()
        depth = ahead
        while True:
            while current and len(waiting) < depth:
                block = current.cutter.take()
                if block is None:
                    if not any(each.file == current.file for each, _, _ in waiting):
                        self._finish(current.file)
                    current = put_back.popleft() if put_back else next(opened, None)
                    continue
                task = Task(
                    self.folder, current.file, current.parser, block, current.share, self.class_names,
                    self.reading.labelling, self.reading.strip_html, self.seed,
                    dict(limits) if current.source.part == "train" else {},
                )  # fmt: skip
                waiting.append((current, block, executor.submit(read_block, task)))
            if not waiting:
                return
            owner, block, future = waiting.popleft()
            found = future.result()
            owner.expanded += found.consumed
            self._check_expansion(owner)
            yield owner, found
            depth = min(ahead, 2 * depth)
            if found.consumed < len(block.data):
                depth = 1
                rest = Block(block.data[found.consumed :], block.line + found.lines, False, full=block.full)
                again: dict[int, tuple[_OpenSource, list[Block]]] = {owner.file: (owner, [rest])}
                for each, later, _ in waiting:
                    again.setdefault(each.file, (each, []))[1].append(later)
                waiting.clear()
                for each, blocks in again.values():
                    each.cutter.put_back(blocks)
                if current and current.file not in again:
                    again[current.file] = (current, [])
                put_back = deque([each for each, _ in again.values()] + list(put_back))
                current = put_back.popleft()

    def _check_expansion(self, opened: _OpenSource) -> None:
        """Stop before a small file that was made to expand fills the disk.

        Raises:
            UserError: the source has expanded beyond the limit.
        """
        path = opened.source.path
        if opened.expanded <= ALWAYS_ALLOWED or path is None or path.is_fifo():
            return
        limit = max(ALWAYS_ALLOWED, int(self.max_expansion * opened.source.bytes))
        if opened.expanded > limit:
            raise UserError(
                f"{opened.source.name} expands to more than {limit / 1e9:,.1f} GB",
                f"it has {opened.source.bytes:,} bytes, and the limit is {self.max_expansion:g} times as many",
                "if it is meant to, raise the limit with --max-expansion",
            )

    def _opened(self) -> Iterator[_OpenSource]:
        """Open the sources one by one. A share takes whole files if there are at least as many files as shares."""
        by_file = len(self.sources) >= self.share.of
        for file, source in enumerate(self.sources):
            if by_file and file % self.share.of != self.share.index:
                continue
            parser, cutter = open_source(source, self.reading)
            self.files[file] = FileCount(format=parser.name, reads=parser.reads, texts=list(parser.texts))
            self._open[file] = _OpenSource(file, source, parser, cutter, Share() if by_file else self.share)
            yield self._open[file]
