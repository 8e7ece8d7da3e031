"""Deduplication of rows, and their division into splits.

The random number of a row is a function of the seed, the file and the line. Therefore the result does not depend on the
order of reading or on the number of processes.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from crepe_dist.data.counter_rng import Numbers, hash_random
from crepe_dist.errors import UserError
from crepe_dist.invocation import command_line
from crepe_dist.preparing.spool import Rows

if TYPE_CHECKING:
    from crepe_dist.preparing.grouping import Grouping

# Split of each row, or the reason why the row is left out, uint8 [rows].
Assignment = npt.NDArray[np.uint8]
# The first four values are indices in ``dataset.ALL_SPLITS``. The others are reasons to leave out a row: it repeats
# another row, or its label is not a known class.
TRAIN, VALIDATION, TEST, UNLABELLED, DUPLICATE, UNKNOWN = range(6)
# Pairs of splits that should share no rows. The report counts the rows of the first split that are in the second one.
SPLIT_PAIRS = ((TEST, TRAIN), (VALIDATION, TRAIN), (TEST, VALIDATION))
# Values of --dedupe.
DEDUPE = ("no", "exact", "near")
# Purpose of the random numbers that divide rows into splits.
SPLIT_DRAW = 2
# Number of rows that are read or sorted at a time.
CHUNK_ROWS = 1 << 20
# Minimum number of rows of a data set that gets a validation split by default. A tenth of the rows is the validation
# split, and 200 rows are enough for early stopping.
MIN_ROWS_FOR_VALIDATION = 2000


@dataclass(frozen=True)
class SplitOptions:
    """Options for deduplication and splitting.

    Args:
        test: Fraction of the rows for the test split. It applies to the rows of training files.
        validation: Fraction of the same rows for the validation split. If it is ``None``, the fraction is 0.1 if there
            are at least ``MIN_ROWS_FOR_VALIDATION`` rows, and 0 otherwise.
        seed: Random seed, 0 to 2^32 - 1.
        dedupe: Whether to leave out rows that repeat the text of an earlier row. ``no`` keeps them. ``exact`` compares
            the texts as they are. ``near`` ignores case, spaces and punctuation. Rows of test files count as the
            earliest, then rows of validation files. An unlabelled text that repeats another text is always left out.
            Unlabelled texts are compared exactly, except with ``near``.

    Raises:
        UserError: A fraction is out of range, or the fractions leave no rows for training.
    """

    test: float = 0.2
    validation: float | None = 0.0
    seed: int = 0
    dedupe: Literal["no", "exact", "near"] = "no"

    def __post_init__(self) -> None:
        fractions = {"test": self.test, "validation": self.validation or 0.0}
        for name, value in fractions.items():
            if not 0 <= value < 1:
                remedy = (
                    f"give a fraction from 0 to below 1; to score a model on a file, run "
                    f"{command_line('evaluate')} RUN FILE"
                )
                raise UserError(f"the {name} fraction is {value}", remedy=remedy)
        if sum(fractions.values()) >= 1:
            raise UserError(
                "the test and validation fractions leave no rows for training",
                f"their sum is {sum(fractions.values()):g}",
                "give fractions whose sum is below 1",
            )


def _draw(rows: Rows, seed: int) -> Numbers:
    """Draw a random number for each row, uint64 [rows]. The rows are processed in chunks to limit the memory."""
    numbers = np.empty(len(rows), dtype=np.uint64)
    for start in range(0, len(rows), CHUNK_ROWS):
        chunk = rows[start : start + CHUNK_ROWS]
        numbers[start : start + CHUNK_ROWS] = hash_random(seed * 8 + SPLIT_DRAW, chunk["file"], chunk["line"])
    return numbers


def assign_splits(
    rows: Rows,
    given_split: Assignment,
    split: SplitOptions,
    known_labels: npt.NDArray[np.bool_],
    grouping: "Grouping | None" = None,
) -> Assignment:
    """Assign each row to a split, or to a reason to leave it out.

    Args:
        rows: Records, sorted by (file, line).
        given_split: Split of the file of each row. Rows of ``TRAIN`` are divided into splits. Rows without a label
            are ``UNLABELLED``.
        split: Options for deduplication and splitting.
        known_labels: True for each label string whose classes are all known, bool [labels].
        grouping: Groups of the rows, which are found after rows are left out; ``None`` if the rows have no groups.

    Raises:
        UserError: No group is small enough for a split.
    """
    assignment = given_split.copy()
    labels = np.array(rows["label"])
    assignment[(assignment != UNLABELLED) & ~known_labels[labels]] = UNKNOWN
    if split.dedupe != "no" or (assignment == UNLABELLED).any():
        for repeated, _ in iter_duplicates(rows["near" if split.dedupe == "near" else "exact"], assignment):
            assignment[repeated if split.dedupe != "no" else repeated[assignment[repeated] == UNLABELLED]] = DUPLICATE
    if grouping is not None:
        grouping.connect(rows, np.flatnonzero(assignment <= TEST))
    _draw_splits(rows, assignment, split, grouping)
    return assignment


def training_labels(rows: Rows, assignment: Assignment) -> npt.NDArray[np.bool_]:
    """Return a mask of the labels that occur in training rows, bool [largest label + 1]."""
    largest = int(rows["label"].max(initial=-1))
    return np.asarray(np.bincount(rows["label"][assignment == TRAIN], minlength=largest + 1) > 0)


def _draw_splits(
    rows: Rows,
    assignment: Assignment,
    split: SplitOptions,
    grouping: "Grouping | None",
) -> None:
    count = np.count_nonzero(assignment == TRAIN)
    if count == 0:
        return
    validation = split.validation
    if validation is None:
        validation = 0.1 if count >= MIN_ROWS_FOR_VALIDATION and split.test < 0.9 else 0.0
    if grouping is not None:
        free = np.flatnonzero(assignment == TRAIN)
        fractions = {code: value for code, value in ((TEST, split.test), (VALIDATION, validation)) if value}
        # Near duplicates connect groups. Without them, the groups may be small enough.
        remedy = (
            "" if split.dedupe == "near" else "leave out repeated texts, which join groups, with --dedupe near; or "
        )
        seed = split.seed * 8 + SPLIT_DRAW
        for code, held_out in grouping.draw_splits(rows, free, fractions, seed, remedy):
            assignment[held_out] = code
        return
    # Draw the rows with the smallest random numbers. Partitioning needs less time and memory than sorting.
    draws = _draw(rows, split.seed)
    draws[assignment != TRAIN] = np.iinfo(np.uint64).max
    ends = np.cumsum([int(count * split.test), int(count * validation)])
    smallest = np.partition(draws, ends)
    test, held_out = (draws < smallest[end] for end in ends)
    assignment[held_out] = VALIDATION
    assignment[test] = TEST


def iter_duplicates(keys: Any, assignment: Assignment) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
    """Yield the indices of rows that repeat the key of an earlier row, and for each the index of the first such row.

    Test rows come first, then validation rows, training rows and unlabelled rows. Rows that are already left out are
    ignored. The rows are yielded in the partitions of ``partition_by_key``.

    Args:
        keys: Hashes of the texts, uint64 [rows].
    """
    keys = np.ascontiguousarray(keys)
    for rows in partition_by_key(keys):
        rows = np.concatenate([rows[assignment[rows] == split] for split in (TEST, VALIDATION, TRAIN, UNLABELLED)])
        values = keys[rows]
        order = np.argsort(values, kind="stable")
        values, rows = values[order], rows[order]
        is_new = np.ones(len(values), dtype=bool)
        is_new[1:] = values[1:] != values[:-1]
        repeated, first = np.flatnonzero(~is_new), np.flatnonzero(is_new)
        yield rows[repeated], rows[first[np.searchsorted(first, repeated) - 1]]


def partition_by_key(keys: Numbers) -> Iterator[npt.NDArray[np.int64]]:
    """Divide rows into partitions by their keys, and yield the indices of the rows in each partition.

    Rows with equal keys are in the same partition. Partitions have about ``CHUNK_ROWS`` rows, which limits the memory.
    """
    num_partitions = np.uint64(-(-len(keys) // CHUNK_ROWS))
    for number in range(int(num_partitions)):
        starts = range(0, len(keys), CHUNK_ROWS)
        yield np.concatenate([i + np.flatnonzero(keys[i : i + CHUNK_ROWS] % num_partitions == number) for i in starts])
