"""Encoding of a split's rows into shards."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from crepe_dist.data.alphabet import Encoding
from crepe_dist.data.arrays import Files, ShardWriter
from crepe_dist.data.dataset import SHARD_BYTES
from crepe_dist.preparing.pool import Workers
from crepe_dist.preparing.spool import SomeRows

MAX_CHUNK, CHUNK_BYTES = 4096, 1 << 23  # rows and bytes that are encoded together


@dataclass
class TextCounts:
    """Counts of the texts that are written.

    Attributes:
        points: count of each code point outside ASCII or the alphabet.
        lengths: number of texts that had 0, 1, … codes before they were cut, int64 [longest + 1].
        unreadable: number of texts of each split that are nearly blank to the network.
    """

    points: Counter[int] = field(default_factory=Counter)
    lengths: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    unreadable: Counter[str] = field(default_factory=Counter)

    @property
    def rows(self) -> int:
        """Number of texts."""
        return int(self.lengths.sum())

    def add(self, other: TextCounts) -> None:
        """Add the counts of further texts."""
        self.points.update(other.points)
        shorter, longer = sorted((self.lengths, other.lengths), key=len)
        self.lengths = longer.copy()
        self.lengths[: len(shorter)] += shorter
        self.unreadable.update(other.unreadable)


def write_shards(
    folder: Path,
    split: str,
    rows: SomeRows,
    encoding: Encoding,
    kinds: tuple[str, ...],
    workers: Workers,
) -> Iterator[tuple[Files, TextCounts]]:
    """Encode the rows of a split and write their shards, in order; yield the files and counts of each.

    Args:
        kinds: kinds of byte strings to write, as for ``ShardWriter``.
    """
    size = max(1, SHARD_BYTES // encoding.feature_len)
    shards = enumerate(rows[start : start + size] for start in range(0, len(rows), size))
    return workers.in_order(partial(write_shard, folder, split, encoding, kinds), shards)


def write_shard(
    folder: Path, split: str, encoding: Encoding, kinds: tuple[str, ...], shard: tuple[int, SomeRows]
) -> tuple[Files, TextCounts]:
    """Encode and write one shard, given its number and rows. Runs in a worker."""
    number, rows = shard
    texts = rows.texts()
    known = np.flatnonzero(encoding.known(np.arange(128, dtype=np.uint32))).astype(np.uint8).tobytes()
    counts, lengths = TextCounts(), np.empty(len(rows), np.int64)
    writer = ShardWriter(folder, split, number, len(rows), encoding.feature_len, kinds)
    step = max(1, min(MAX_CHUNK, CHUNK_BYTES // encoding.feature_len))
    for start in range(0, len(rows), step):
        chunk = rows[start : start + step].records()
        data = texts.get(chunk)
        codes, lengths[start : start + step] = encoding.encode_and_measure([text.decode("utf-8") for text in data])
        writer.append(codes, texts=data, ids=texts.ids(chunk))
        # Most characters are ASCII and in the alphabet, so only the others are counted individually.
        left = b"".join(data).translate(None, known).decode("utf-8")
        if left:
            values, times = np.unique(np.frombuffer(left.encode("utf-32-le"), dtype="<u4"), return_counts=True)
            counts.points.update(dict(zip(values.tolist(), times.tolist())))
            counts.unreadable[split] += int(np.count_nonzero(encoding.unreadable(codes, chunk["characters"])))
    counts.lengths = np.bincount(lengths)
    return writer.close(), counts
