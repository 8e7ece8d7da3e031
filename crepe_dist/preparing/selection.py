"""Which rows are kept, and in which part: functions of (seed, file, line), whoever read them in whatever order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from crepe_dist.data.keyed_random import Numbers, mix
from crepe_dist.errors import UserError
from crepe_dist.preparing.spool import Rows

Fate = npt.NDArray[np.uint8]
TRAIN, VALIDATION, TEST, REPEATED, SAMPLED_OUT, UNKNOWN = range(6)
DEDUPE = ("no", "exact", "near")
SAMPLE_DRAW, SPLIT_DRAW = 1, 2
PIECE = 1 << 20


@dataclass(frozen=True)
class Split:
    """How rows are chosen and divided; ``seed`` decides which.

    Args:
        test: fraction held back for testing, of the rows without a part of their own.
        validation: fraction of the same rows for choosing the best epoch and for early stopping.
        stratified: both fractions are taken of each class by itself.
        max_per_class: more rows of a class than this are sampled down to it, uniformly.
        dedupe: rows equal to an earlier one are left out: ``exact``, or ``near`` (but for case, spaces and
            punctuation). Rows of a test part of its own come before all others, then those of a validation part.
        align: the number of training rows is made a multiple of this; what is over goes to the test part.

    Raises:
        UserError: fractions below 0 or that leave nothing to train on, or a cap or alignment below 1.
    """

    test: float = 0.2
    validation: float = 0.0
    seed: int = 0
    stratified: bool = False
    max_per_class: int | None = None
    dedupe: Literal["no", "exact", "near"] = "no"
    align: int = 1

    def __post_init__(self) -> None:
        for name, value in (("test", self.test), ("validation", self.validation)):
            if not 0 <= value < 1:
                raise UserError(f"the {name} fraction is {value}", remedy="give a fraction from 0 to below 1")
        if self.test + self.validation >= 1:
            raise UserError("the test and validation fractions leave nothing to train on", remedy="make them smaller")
        for name, number in (("max_per_class", self.max_per_class), ("align", self.align)):
            if number is not None and number < 1:
                raise UserError(f"{name} is {number}", remedy="give a number from 1 on")
        if not 0 <= self.seed < 1 << 32:
            raise UserError(f"the seed is {self.seed}", remedy=f"give a number from 0 to {(1 << 32) - 1}")


def draw(seed: int, purpose: int, files: Any, lines: Any) -> Numbers:
    """A random number, uint64, for each row; independent between rows and purposes."""
    with np.errstate(over="ignore"):
        state = mix(np.array([seed * 8 + purpose], dtype=np.uint64))
        state = mix(state + np.asarray(files).astype(np.uint64))
        return mix(state + np.asarray(lines).astype(np.uint64))


def _draw_for(rows: Rows, some: npt.NDArray[np.int64], seed: int, purpose: int) -> Numbers:
    """The draw of some rows, a piece at a time: ten million rows are to be decided in little memory."""
    drawn = np.empty(len(some), dtype=np.uint64)
    for start in range(0, len(some), PIECE):
        piece = rows[some[start : start + PIECE]]
        drawn[start : start + PIECE] = draw(seed, purpose, piece["file"], piece["line"])
    return drawn


class Reservoir:
    """Of each class, the rows with the smallest numbers drawn: a uniform sample in one pass, whatever the order.

    Rows above ``limits`` cannot be in it any more; that is all that is told, so readers may know it late.
    """

    def __init__(self, size: int) -> None:
        self.limits: dict[str, int] = {}
        self._size = size
        self._drawn: dict[str, list[Numbers]] = {}

    def add(self, label: str, drawn: Numbers) -> None:
        kept = self._drawn.setdefault(label, [])
        kept.append(drawn)
        if sum(map(len, kept)) >= 2 * self._size:
            smallest = np.partition(np.concatenate(kept), self._size - 1)[: self._size].copy()
            self._drawn[label] = [smallest]
            self.limits[label] = int(smallest.max())


def decide(rows: Rows, fixed: Fate, split: Split) -> Fate:
    """The fate of each row: ``TRAIN``, ``VALIDATION``, ``TEST``, or why it is left out.

    Args:
        rows: in the order of (file, line).
        fixed: uint8 [n], the part of each row's file; rows of ``TRAIN`` are divided.
    """
    fate = fixed.copy()
    label = np.array(rows["label"])
    trained = np.zeros(int(label.max(initial=-1)) + 1, dtype=bool)
    trained[label[fixed == TRAIN]] = True
    fate[~trained[label]] = UNKNOWN
    if split.dedupe != "no":
        fate[repeats(rows[split.dedupe], fate)] = REPEATED
    if split.max_per_class is not None:
        free = np.flatnonzero(fate == TRAIN)
        _, place = _by_class(rows, free, label, split.seed, SAMPLE_DRAW)
        fate[free[place >= split.max_per_class]] = SAMPLED_OUT
    _divide(rows, fate, label, split)
    return fate


def _divide(rows: Rows, fate: Fate, label: npt.NDArray[np.int32], split: Split) -> None:
    free = np.flatnonzero(fate == TRAIN)
    if split.stratified:
        size, place = _by_class(rows, free, label, split.seed, SPLIT_DRAW)
        tests, validations = np.rint(size * split.test), np.rint(size * split.validation)
    else:
        place = _places(_draw_for(rows, free, split.seed, SPLIT_DRAW))
        tests, validations = np.array(int(len(free) * split.test)), np.array(int(len(free) * split.validation))
    fate[free[place < tests]] = TEST
    fate[free[(place >= tests) & (place < tests + validations)]] = VALIDATION
    training = np.flatnonzero(fate == TRAIN)
    over = len(training) % split.align
    if over:
        drawn = _draw_for(rows, training, split.seed, SPLIT_DRAW)
        fate[training[np.argsort(drawn, kind="stable")[:over]]] = TEST


def _by_class(
    rows: Rows, free: npt.NDArray[np.int64], label: npt.NDArray[np.int32], seed: int, purpose: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """For each of the rows ``free``: how many there are of its class, and its place among them in the draw."""
    drawn = _draw_for(rows, free, seed, purpose)
    order = np.lexsort((drawn, label[free]))
    counts = np.bincount(label[free])
    starts = np.cumsum(counts) - counts
    place = np.empty(len(free), dtype=np.int64)
    place[order] = np.arange(len(free))
    return counts[label[free]], place - starts[label[free]]


def _places(drawn: Numbers) -> npt.NDArray[np.int64]:
    place = np.empty(len(drawn), dtype=np.int64)
    place[np.argsort(drawn, kind="stable")] = np.arange(len(drawn))
    return place


def repeats(key: Any, fate: Fate) -> npt.NDArray[np.bool_]:
    """bool [n]: rows of a part whose key stands in an earlier row of one; see ``firsts``."""
    return firsts(key, fate) >= 0


def firsts(key: Any, fate: Fate) -> npt.NDArray[np.int64]:
    """int64 [n]: for each row of a part, the first row of one with the same key; -1 if it is the first itself.

    Test rows come before validation rows, and those before training rows.
    """
    used = np.concatenate([np.flatnonzero(fate == part) for part in (TEST, VALIDATION, TRAIN)])
    values = key[used]
    order = np.argsort(values, kind="stable")
    values = values[order]
    used = used[order]
    del order
    new = np.ones(len(values), dtype=bool)
    new[1:] = values[1:] != values[:-1]
    del values
    again = np.flatnonzero(~new)
    first = np.flatnonzero(new)
    result = np.full(len(fate), -1, dtype=np.int64)
    result[used[again]] = used[first[np.searchsorted(first, again) - 1]]
    return result
