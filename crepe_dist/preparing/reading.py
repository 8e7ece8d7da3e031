"""Reading of sources into a spool: blocks are cut in this process, parsed and checked by workers, written in order."""

from __future__ import annotations

import json
import re
import unicodedata
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, Future
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from crepe_dist.data.composition import has_tags, without_tags
from crepe_dist.data.origins import hashes
from crepe_dist.data.targets import ONE
from crepe_dist.errors import UserError
from crepe_dist.preparing.formats.rows import BadRow, Block, OpenFile, Parse, Parsed, Row, check_text, excerpt, rest_of
from crepe_dist.preparing.labelling import Labelling, Name
from crepe_dist.preparing.selection import SAMPLE_DRAW, Reservoir, draw
from crepe_dist.preparing.sources import Reading, Source, open_source
from crepe_dist.preparing.spool import BAD_ROWS, MAX_WEIGHT, ROW, ROWS, Rows, TextWriter

STRIPE = 1024  # lines
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
class Share:
    """One machine's share of the lines of a file, in alternating stripes: number ``index`` from 0, of ``of``."""

    index: int = 0
    of: int = 1

    def owns(self, line: int) -> bool:
        """Tell whether a line belongs to this share."""
        return self.of == 1 or line // STRIPE % self.of == self.index


@dataclass(frozen=True)
class Rules:
    """Rules for all rows.

    Attributes:
        folder: folder of the spool.
        class_names: names of the labels 1 … C, if a file gives them.
        strip_html: remove HTML tags from the texts.
        seed: seed of the sampling.
    """

    folder: Path
    class_names: tuple[str, ...] | None
    labelling: Labelling
    strip_html: bool
    seed: int


class BlockRows(NamedTuple):
    """Rows of a block.

    Attributes:
        rows: records of the usable rows within the limits; their labels index ``labels``.
        good: number of usable rows of each label, including those beyond the limits.
        drawn: random numbers of ``rows``.
        consumed, lines: bytes and lines of the block that were used.
        texts: name of the file that holds the texts.
        merged: labels that became another class.
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


def read_block(rules: Rules, file: int, share: Share, limits: dict[str, int], parse: Parse, block: Block) -> BlockRows:
    """Parse and check one block, and append its texts to this process's file. Runs in a worker.

    Args:
        file: index of the source.
        share: lines to keep.
        limits: largest random number that can still be in the sample, by class.
    """
    parsed = parse(block) if block.data else Parsed([], [], 0, 0)
    bad = [row for row in (*block.bad, *parsed.bad) if share.owns(row.line)]
    labels: dict[str, int] = {}
    rows: list[Row] = []
    texts: list[bytes] = []
    weights: list[float] = []
    tagged: list[bool] = []
    merged, used = dict(rules.labelling.merged), set[str]()

    def name(label: str) -> str:
        label = _class_name(label, rules.class_names)
        used.update([label] if label in merged else [])
        return merged.get(label, label)

    for row in parsed.rows:
        if not share.owns(row.line):
            continue
        has_html = has_tags(row.text)
        if rules.strip_html:
            row = row._replace(text=without_tags(row.text))
        try:
            label, text = _checked(row, rules.labelling, name)
            weights.append(_weight(row))
        except ValueError as error:
            bad.append(BadRow(row.line, str(error), excerpt(row.text)))
        else:
            labels.setdefault(label, len(labels))
            rows.append(Row(row.line, label, row.text, id=row.id))
            texts.append(text)
            tagged.append(has_html)
    bad.sort(key=lambda row: row.line)
    records = np.zeros(len(rows), dtype=ROW)
    records["file"] = file
    records["line"] = [row.line for row in rows]
    records["label"] = [labels[row.label] for row in rows]
    records["weight"] = weights
    records["html"] = tagged
    good = np.bincount(records["label"], minlength=len(labels)).tolist()
    drawn = draw(rules.seed, SAMPLE_DRAW, records["file"], records["line"])
    if any(label in limits for label in labels):
        most = np.array([limits.get(label, (1 << 64) - 1) for label in labels], dtype=np.uint64)
        kept = np.flatnonzero(drawn <= most[records["label"]]).tolist()
        records, drawn = records[kept], drawn[kept]
        rows, texts = [rows[i] for i in kept], [texts[i] for i in kept]
    ids = [row.id[:MAX_ID].encode("utf-8", "replace") for row in rows]
    records["id"] = list(map(len, ids))
    writer = _writer(rules.folder)
    start = writer.append([text + id_ for text, id_ in zip(texts, ids)])
    _describe(records, rows, texts, start, rules.labelling.kind)
    return BlockRows(records, list(labels), good, drawn, bad, parsed.consumed, parsed.lines, writer.name, used)


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
        _close_writers()
        _open_writers[folder] = TextWriter(folder)
    return _open_writers[folder]


def _close_writers() -> None:
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
    """A source that is being read.

    Attributes:
        file: its index.
        share: lines to keep.
        waiting: blocks that are being parsed, in order.
        is_cut: all its blocks have been taken.
        expanded: bytes after decompression, so far.
    """

    file: int
    source: Source
    opened: OpenFile
    share: Share
    waiting: deque[tuple[Block, Future[BlockRows]]] = field(default_factory=deque)
    is_cut: bool = False
    expanded: int = 0


@dataclass
class Reader:
    """Reader of sources, or a share of them, into a spool folder.

    Attributes:
        max_per_class: size of the sample per class; ``None`` to keep all rows.
        share: lines or files to read, if several machines share the work.
        max_expansion: most decompressed bytes of a source, as a multiple of its size.
        labels: index of each label, in the order of appearance.
        good: usable rows of each label, including rows already excluded by sampling.
        files: counts of each source read, by index.
        texts: names of the files of texts.
        bad: number of unusable lines.
    """

    sources: Sequence[Source]
    reading: Reading
    rules: Rules
    max_per_class: int | None
    share: Share
    max_expansion: float
    labels: dict[str, int] = field(default_factory=dict)
    good: Counter[str] = field(default_factory=Counter)
    files: dict[int, FileCount] = field(default_factory=dict)
    texts: list[str] = field(default_factory=list)
    bad: int = 0

    def read(self, executor: Executor, ahead: int) -> Iterator[int]:
        """Read all sources, with at most ``ahead`` blocks in flight; yield the number of bytes read so far."""
        reservoir = None if self.max_per_class is None else Reservoir(self.max_per_class)
        folder = self.rules.folder
        with ExitStack() as stack:
            stack.callback(_close_writers)
            rows = stack.enter_context((folder / ROWS).open("wb"))
            bad = stack.enter_context((folder / BAD_ROWS).open("w", encoding="utf-8"))
            for source, block in self._in_order(executor, ahead, reservoir.limits if reservoir else {}):
                self._record(source, block, rows, bad)
                if reservoir and source.source.part == "train":
                    for index, label in enumerate(block.labels):
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
        count.merged = sorted(block.merged.union(count.merged))
        for label, good in zip(block.labels, block.good):
            self.labels.setdefault(label, len(self.labels))
            self.good[label] += good
            count.rows += good
        if len(self.labels) > (MAX_CLASSES if self.reading.labelling.kind == ONE else MAX_SETS):
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

    def _in_order(
        self, executor: Executor, ahead: int, limits: dict[str, int]
    ) -> Iterator[tuple[_OpenSource, BlockRows]]:
        """Yield the rows of each block in order.

        If a parser leaves the end of a block unused, that end and all later blocks of the source are cut again. The
        number of blocks in flight then drops to one and grows back, to limit the repeated work.
        """
        unopened, depth = self._opened(), ahead
        sources: list[_OpenSource] = []
        while True:
            for source in [source for source in sources if source.is_cut and not source.waiting]:
                sources.remove(source)
                self._finish(source)
            if sum(len(source.waiting) for source in sources) < depth or not sources[0].waiting:
                uncut = next((source for source in sources if not source.is_cut), None)
                if next_source := uncut or next(unopened, None):
                    sources.extend([] if uncut else [next_source])
                    self._submit(next_source, executor, limits)
                    continue
            if not sources:
                return
            source = sources[0]
            block, future = source.waiting.popleft()
            rows = future.result()
            source.expanded += rows.consumed
            self._check_expansion(source)
            self.files[source.file].bytes = source.opened.cutter.position
            yield source, rows
            depth = min(ahead, 2 * depth)
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
            task = (self.rules, source.file, source.share, most, source.opened.parse, block)
            source.waiting.append((block, executor.submit(read_block, *task)))

    def _finish(self, source: _OpenSource) -> None:
        """Close a source at its end."""
        count, cutter = self.files[source.file], source.opened.cutter
        count.sha256, count.bytes = cutter.sha256(), cutter.position
        cutter.close()

    def _check_expansion(self, source: _OpenSource) -> None:
        """Stop before a small file that was made to expand fills the disk."""
        path = source.source.path
        if source.expanded <= ALWAYS_ALLOWED or path is None or path.is_fifo():
            return
        size = source.source.bytes
        limit = max(ALWAYS_ALLOWED, int(self.max_expansion * size))
        if source.expanded > limit:
            raise UserError(
                f"{source.source.name} expands to more than {limit / 1e9:,.1f} GB",
                f"it has {size:,} bytes, and the limit is {self.max_expansion:g} times as many",
                "if it is meant to, raise the limit with --max-expansion",
            )

    def _opened(self) -> Iterator[_OpenSource]:
        """Open the sources one by one. A share takes whole files if there are at least as many files as shares."""
        by_file = len(self.sources) >= self.share.of
        for file, source in enumerate(self.sources):
            if by_file and file % self.share.of != self.share.index:
                continue
            opened = open_source(source, self.reading)
            self.files[file] = FileCount(format=opened.format, reads=opened.reads, texts=list(opened.texts))
            yield _OpenSource(file, source, opened, Share() if by_file else self.share)
