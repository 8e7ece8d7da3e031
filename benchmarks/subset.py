"""Data set folders with fewer rows than another."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from crepe_dist.data.dataset import SPLITS, UNLABELLED, WEIGHTS, Dataset, Split, open_dataset, write_manifest
from crepe_dist.data.writing import write_array, write_documents


def chosen(dataset: Dataset, name: str, rows: int, seed: int, skipped: int = 0) -> npt.NDArray[np.int64]:
    """Draw rows of a split without replacement, int64 [n], ascending; with the same seed, fewer are among more.

    Args:
        skipped: rows that are drawn before, and left out.
    """
    order = np.random.default_rng([seed, SPLITS.index(name)]).permutation(len(dataset.splits[name]))
    return np.sort(order[skipped : skipped + rows])


def write(dataset: Dataset, folder: Path, rows: Mapping[str, int], seed: int) -> Dataset:
    """Copy at most so many rows of each split into a new data set folder, with the same encoding and classes.

    Args:
        rows: number of rows by split, and of ``unlabelled``: other training rows, without their labels.
    """
    drawn = {name: chosen(dataset, name, rows[name], seed) for name in dataset.splits}
    others = chosen(dataset, "train", rows.get(UNLABELLED, 0), seed, rows["train"])
    labelled = {name: (own, part_labels(dataset, name)[own]) for name, own in drawn.items()}
    return _write_all(dataset, folder, labelled, unlabelled=others)


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
    unlabelled: npt.NDArray[np.int64] | None = None,
) -> Dataset:
    folder.mkdir(parents=True)
    parts = {name: _write_split(folder, part, *rows[name]) for name, part in dataset.splits.items()}
    if unlabelled is not None and len(unlabelled):
        parts[UNLABELLED] = write_documents(folder, UNLABELLED, dataset.splits["train"], unlabelled)
    write_manifest(folder, {**dataset.manifest, "classes": classes or dataset.classes, "parts": parts})
    return open_dataset(folder)


def _write_split(
    folder: Path, split: Split, rows: npt.NDArray[np.int64], labels: npt.NDArray[np.int32]
) -> dict[str, Any]:
    part = write_documents(folder, split.name, split, rows)
    part["files"] |= write_array(folder, f"{split.name}.labels.npy", labels)
    if split.weights is not None:
        part["files"] |= write_array(folder, WEIGHTS, split.weights[rows])
    return part
