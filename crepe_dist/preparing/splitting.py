"""Selection of rows and their division into splits, as a function of (seed, file, line).

The result does not depend on the order of reading or on the number of processes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from crepe_dist.data.counter_rng import Numbers, hash_random
from crepe_dist.errors import UserError
from crepe_dist.invocation import command_line
from crepe_dist.preparing.spool import Rows

Assignment = npt.NDArray[np.uint8]
TRAIN, VALIDATION, TEST, UNLABELLED, DUPLICATE, SAMPLED_OUT, UNKNOWN = range(7)  # the first as ``dataset.ALL_SPLITS``
DEDUPE = ("no", "exact", "near")
SAMPLE_DRAW, SPLIT_DRAW = 1, 2
CHUNK_ROWS = 1 << 20  # rows that are read or sorted at a time
MIN_ROWS_FOR_VALIDATION = 2000  # a tenth of so many can choose an epoch: training.patience wants 200


@dataclass(frozen=True)
class SplitOptions:
    """Parameters of the selection.

    Args:
        test: fraction of the rows held out for testing, among sources without a split of their own.
        validation: fraction of the same rows for choosing the best epoch and for early stopping; ``None``: 0.1 of at
            least ``VALIDATION_FROM`` rows, else 0.
        seed: random seed, 0 to 2^32 - 1.
        stratified: apply both fractions to each class separately.
        max_per_class: maximum number of rows per class; larger classes are sampled uniformly.
        dedupe: drop rows whose text repeats an earlier one: ``exact``, or ``near`` (ignoring case, spaces and
            punctuation). Rows of given test files count as earlier than all others, then rows of given validation
            files. A text without a label is always dropped if it repeats another one: exactly, unless this is ``near``.
        keep_unlabelled: keep the rows of training files that have no label, as unlabelled texts.

    Raises:
        UserError: A fraction or number is out of range, or nothing is left to train on.
    """

    test: float = 0.2
    validation: float | None = 0.0
    seed: int = 0
    stratified: bool = False
    max_per_class: int | None = None
    dedupe: Literal["no", "exact", "near"] = "no"
    keep_unlabelled: bool = False

    def __post_init__(self) -> None:
        shares = {"test": self.test, "validation": self.validation or 0.0}
        for name, value in shares.items():
            if not 0 <= value < 1:
                remedy = (
                    f"give a fraction from 0 to below 1; to score a model on a file: "
                    f"{command_line('evaluate')} RUN FILE"
                )
                raise UserError(f"the {name} fraction is {value}", remedy=remedy)
        if sum(shares.values()) >= 1:
            raise UserError("the test and validation fractions leave nothing to train on", remedy="make them smaller")


def _draw(rows: Rows, seed: int, purpose: int) -> Numbers:
    """Draw for each row, in pieces, to bound the memory for many millions of rows."""
    drawn = np.empty(len(rows), dtype=np.uint64)
    for start in range(0, len(rows), CHUNK_ROWS):
        piece = rows[start : start + CHUNK_ROWS]
        drawn[start : start + CHUNK_ROWS] = hash_random(seed * 8 + purpose, piece["file"], piece["line"])
    return drawn


def assign_splits(
    rows: Rows, given_split: Assignment, split: SplitOptions, known_labels: npt.NDArray[np.bool_]
) -> Assignment:
    """Decide the fate of each row: ``TRAIN``, ``VALIDATION``, ``TEST``, ``UNLABELLED``, or the reason to leave it out.

    Args:
        rows: records in the order of (file, line).
        fixed: split of each row's file, or ``UNLABELLED``, uint8 [n]; rows of ``TRAIN`` are divided further.
        known: labels whose classes are those of training rows, bool [labels].

    Returns:
        uint8 [n].
    """
    fate = given_split.copy()
    label = np.array(rows["label"])
    fate[(fate != UNLABELLED) & ~known_labels[label]] = UNKNOWN
    if split.dedupe != "no" or (fate == UNLABELLED).any():
        for again, _ in iter_duplicates(rows["near" if split.dedupe == "near" else "exact"], fate):
            fate[again if split.dedupe != "no" else again[fate[again] == UNLABELLED]] = DUPLICATE
    if split.max_per_class is not None:
        free = np.flatnonzero(fate == TRAIN)
        _, position = _rank_in_class(rows, free, label, split.seed, SAMPLE_DRAW)
        fate[free[position >= split.max_per_class]] = SAMPLED_OUT
    _draw_splits(rows, fate, label, split)
    return fate


def training_labels(rows: Rows, assignment: Assignment) -> npt.NDArray[np.bool_]:
    """Tell which labels occur in training rows, bool [largest label + 1]."""
    largest = int(rows["label"].max(initial=-1))
    return np.asarray(np.bincount(rows["label"][assignment == TRAIN], minlength=largest + 1) > 0)


def _draw_splits(rows: Rows, assignment: Assignment, label: npt.NDArray[np.int32], split: SplitOptions) -> None:
    count = np.count_nonzero(assignment == TRAIN)
    if count == 0:
        return
    validation = split.validation
    if validation is None:
        validation = 0.1 if count >= MIN_ROWS_FOR_VALIDATION and split.test < 0.9 else 0.0
    if split.stratified:
        free = np.flatnonzero(assignment == TRAIN)
        size, position = _rank_in_class(rows, free, label, split.seed, SPLIT_DRAW)
        counts = np.rint(size * split.test)
        test, held_out = free[position < counts], free[position < counts + np.rint(size * validation)]
    else:  # the smallest draws, found without the indices of a sort
        drawn = _draw(rows, split.seed, SPLIT_DRAW)
        drawn[assignment != TRAIN] = np.iinfo(np.uint64).max
        ends = np.cumsum([int(count * split.test), int(count * validation)])
        smallest = np.partition(drawn, ends)
        test, held_out = (drawn < smallest[end] for end in ends)
    assignment[held_out] = VALIDATION
    assignment[test] = TEST


def _rank_in_class(
    rows: Rows, free: npt.NDArray[np.int64], label: npt.NDArray[np.int32], seed: int, purpose: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return, for each of the rows ``free``, the size of its class and its random rank within the class."""
    drawn = _draw(rows, seed, purpose)[free]
    order = np.lexsort((drawn, label[free]))
    counts = np.bincount(label[free])
    starts = np.cumsum(counts) - counts
    position = np.empty(len(free), dtype=np.int64)
    position[order] = np.arange(len(free))
    return counts[label[free]], position - starts[label[free]]


def iter_duplicates(keys: Any, assignment: Assignment) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
    """Yield the rows of the splits that repeat the key of an earlier row, and the first rows with these keys, by index.

    Test rows count as earlier than validation rows, those as earlier than training rows, and unlabelled ones as the
    last.

    Args:
        keys: hashes, uint64 [n].
    """
    keys = np.ascontiguousarray(keys)
    for rows in partition_by_key(keys):
        rows = np.concatenate([rows[assignment[rows] == split] for split in (TEST, VALIDATION, TRAIN, UNLABELLED)])
        values = keys[rows]
        order = np.argsort(values, kind="stable")
        values, rows = values[order], rows[order]
        is_new = np.ones(len(values), dtype=bool)
        is_new[1:] = values[1:] != values[:-1]
        again, first = np.flatnonzero(~is_new), np.flatnonzero(is_new)
        yield rows[again], rows[first[np.searchsorted(first, again) - 1]]


def partition_by_key(keys: Numbers) -> Iterator[npt.NDArray[np.int64]]:
    """Divide rows by their keys, and yield the indices of each part; bounds the memory for many millions of rows."""
    parts = np.uint64(-(-len(keys) // CHUNK_ROWS))
    for part in range(int(parts)):
        pieces = range(0, len(keys), CHUNK_ROWS)
        yield np.concatenate([i + np.flatnonzero(keys[i : i + CHUNK_ROWS] % parts == part) for i in pieces])
