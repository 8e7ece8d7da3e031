"""Encoding of a split's rows into shards."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from crepe_dist.data.alphabet import Encoding
from crepe_dist.data.dataset import SHARD_BYTES, ShardWriter
from crepe_dist.preparing.formats.rows import excerpt
from crepe_dist.preparing.job import Collected
from crepe_dist.preparing.pool import map_in_order
from crepe_dist.preparing.spool import Texts, map_rows

EXAMPLES = 3  # texts without a letter that the report quotes
MAX_CHUNK, CHUNK_BYTES = 4096, 1 << 23  # rows and bytes that are encoded together


@dataclass(frozen=True)
class _ShardTask:
    folder: Path
    part: str
    shard: int
    start: int
    stop: int
    encoding: Encoding
    rows: Path
    texts: tuple[Path, ...]
    kept: tuple[str, ...]


@dataclass(frozen=True)
class ShardDone:
    """Shard that was written: its files, and counts of its texts as in ``Built``."""

    rows: int
    files: dict[str, dict[str, Any]]
    points: dict[int, int]
    lengths: npt.NDArray[np.int64]
    unreadable: int
    letterless: int
    letterless_examples: list[str]


def write_shards(
    folder: Path,
    part: str,
    chosen: npt.NDArray[np.int64],
    encoding: Encoding,
    found: Collected,
    kept: tuple[str, ...],
    executor: Executor,
    ahead: int,
) -> Iterator[ShardDone]:
    """Encode the rows of a split and write their shards, in order.

    Args:
        folder: folder of the data set.
        part: name of the split.
        chosen: indices of its rows, int64 [n].
        encoding: encoding after fitting.
        found: rows from reading.
        kept: as for ``ShardWriter``.
        executor: pool to encode in.
        ahead: maximum number of tasks in flight.
    """
    rows, size = len(chosen), max(1, SHARD_BYTES // encoding.feature_len)
    chosen.tofile(_chosen(folder, part))
    tasks = (
        _ShardTask(
            folder, part, shard, start, min(start + size, rows), encoding, found.rows_path, tuple(found.texts), kept
        )
        for shard, start in enumerate(range(0, rows, size))
    )
    yield from map_in_order(executor, write_shard, tasks, ahead)
    _chosen(folder, part).unlink()


def _chosen(folder: Path, part: str) -> Path:
    """Return the file that tells the workers which rows are in a split."""
    return folder / f"{part}.chosen.bin"


def write_shard(task: _ShardTask) -> ShardDone:
    """Encode and write one shard. Runs in a worker."""
    rows = map_rows(task.rows)
    texts = Texts(task.texts)
    count = task.stop - task.start
    chosen = np.fromfile(_chosen(task.folder, task.part), np.int64, count, offset=8 * task.start)
    known = np.flatnonzero(task.encoding.known(np.arange(128, dtype=np.uint32))).astype(np.uint8).tobytes()
    points: Counter[int] = Counter()
    lengths = np.empty(len(chosen), np.int64)
    unreadable = 0
    letterless: list[str] = []  # the first ones
    letterless_count = 0
    writer = ShardWriter(task.folder, task.part, task.shard, len(chosen), task.encoding.feature_len, task.kept)
    step = max(1, min(MAX_CHUNK, CHUNK_BYTES // task.encoding.feature_len))
    for start in range(0, len(chosen), step):
        some = rows[chosen[start : start + step]]
        data = texts.get(some)
        decoded = [text.decode("utf-8") for text in data]
        odd = [text for text in decoded if not any(map(str.isalpha, text))]
        letterless_count += len(odd)
        letterless = (letterless + [excerpt(text) for text in odd[:EXAMPLES]])[:EXAMPLES]
        codes = task.encoding.encode(decoded)
        lengths[start : start + step] = task.encoding.lengths(decoded)
        writer.append(codes, texts=data, ids=texts.ids(some))
        # Most characters are ASCII and in the alphabet, so only the others are counted individually.
        left = b"".join(data).translate(None, known).decode("utf-8")
        if left:
            values, counts = np.unique(np.frombuffer(left.encode("utf-32-le"), dtype="<u4"), return_counts=True)
            points.update(dict(zip(values.tolist(), counts.tolist())))
            unreadable += int(np.count_nonzero(task.encoding.unreadable(codes, some["characters"])))
    return ShardDone(len(chosen), writer.close(), dict(points), lengths, unreadable, letterless_count, letterless)
