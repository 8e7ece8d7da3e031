"""Data set folders with fewer rows than another."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from crepe_dist.data.arrays import IDS, TEXTS
from crepe_dist.data.dataset import (
    SHARD_BYTES,
    SPLITS,
    WEIGHTS,
    Dataset,
    Split,
    open_dataset,
    write_manifest,
)
from crepe_dist.data.origins import file_of
from crepe_dist.data.writing import ShardWriter, write_array

CHUNK = 4096  # rows that are copied together


def chosen(dataset: Dataset, name: str, rows: int, seed: int) -> npt.NDArray[np.int64]:
    """Draw rows of a split without replacement, int64 [n], ascending; with the same seed, fewer are among more."""
    order = np.random.default_rng([seed, SPLITS.index(name)]).permutation(len(dataset.splits[name]))
    return np.sort(order[:rows])


def write(dataset: Dataset, folder: Path, rows: Mapping[str, int], seed: int) -> Dataset:
    """Copy at most so many rows of each split into a new data set folder, with the same encoding and classes."""
    drawn = {name: chosen(dataset, name, rows[name], seed) for name in dataset.splits}
    return _write_all(dataset, folder, {name: (own, part_labels(dataset, name)[own]) for name, own in drawn.items()})


def without_class(dataset: Dataset, folder: Path, index: int) -> Dataset:
    """Copy all rows but those of one class into a new data set folder, with the same encoding."""
    chosen_rows = {}
    for name in dataset.splits:
        labels = part_labels(dataset, name)
        rows = np.flatnonzero(labels != index)
        chosen_rows[name] = rows, (labels - (labels > index))[rows].astype(labels.dtype)
    classes = [name for place, name in enumerate(dataset.classes) if place != index]
    return _write_all(dataset, folder, chosen_rows, classes)


def part_labels(dataset: Dataset, name: str) -> npt.NDArray[np.int32]:
    """Return the labels of a split, int32 [n]."""
    return np.asarray(dataset.splits[name].labels)


def _write_all(
    dataset: Dataset,
    folder: Path,
    rows: Mapping[str, tuple[npt.NDArray[np.int64], npt.NDArray[np.int32]]],
    classes: list[str] | None = None,
) -> Dataset:
    folder.mkdir(parents=True)
    length = dataset.encoding.feature_len
    parts = {name: _write(folder, part, length, *rows[name]) for name, part in dataset.splits.items()}
    write_manifest(folder, {**dataset.manifest, "classes": classes or dataset.classes, "parts": parts})
    return open_dataset(folder)


def _write(
    folder: Path, part: Split, feature_len: int, rows: npt.NDArray[np.int64], labels: npt.NDArray[np.int32]
) -> dict[str, Any]:
    files = write_array(folder, f"{part.name}.labels.npy", labels)
    if part.weights is not None:
        files |= write_array(folder, WEIGHTS, part.weights[rows])
    files |= write_array(folder, file_of(part.name), part.origins[rows])
    size = max(1, SHARD_BYTES // feature_len)
    kept = [TEXTS] * (part.name != "train") + [IDS] * part.has_ids
    sizes = []
    for shard, start in enumerate(range(0, len(rows), size)):
        mine = rows[start : start + size]
        writer = ShardWriter(folder, part.name, shard, len(mine), feature_len, kept)
        for first in range(0, len(mine), CHUNK):
            some = mine[first : first + CHUNK]
            texts, ids = ([(of(row) or "").encode() for row in some.tolist()] for of in (part.text, part.id))
            writer.append(part.codes(some), texts=texts, ids=ids)
        files |= writer.close()
        sizes.append(len(mine))
    return {"rows": len(rows), "shards": sizes, "files": files}
