"""Counting of the values of columns beside the text: which categories there are, and where intervals of numbers end."""

from __future__ import annotations

from collections import Counter

import numpy as np
import numpy.typing as npt

from crepe_dist.data.characters import MAX_CHARACTERS, MOST_PAIRED
from crepe_dist.data.text_preprocessing import UNIT, VALUES, Column, Composition, category, numeric
from crepe_dist.errors import UserError
from crepe_dist.preparing.formats.columns import Wanted
from crepe_dist.preparing.spool import SomeRows
from crepe_dist.preparing.worker_pool import Workers

PIECE = 1 << 15  # rows per task
Floats = npt.NDArray[np.float64]
MOST = MOST_PAIRED + MAX_CHARACTERS  # categories of a column of which some can have codes
INTERVALS = 16  # of a number, with about as many rows in each


def count_columns(wanted: Wanted, training: SomeRows, workers: Workers) -> tuple[tuple[Column, ...], str]:
    """Describe the columns beside the text by the training rows; return them and the characters of their values.

    The characters are sorted by frequency, the highest first, and then by column and value.

    Raises:
        UserError: a column has no values, or there are too many columns of many values.
    """
    counts: list[Counter[str]] = [Counter() for _ in wanted.beside]
    pieces = (training[start : start + PIECE] for start in range(0, len(training), PIECE))
    for found in workers.in_order(count_values, pieces):
        for total, of_piece in zip(counts, found):
            total.update(of_piece)
    columns: list[Column] = []
    frequencies: list[int] = []
    for name, values in zip(wanted.beside, counts):
        if name in wanted.numbers:
            for nan in [value for value in values if value and not numeric(value)]:
                values[""] += values.pop(nan)
        missing = values.pop("", 0)
        if not values:
            raise UserError(f"column {name!r} is empty in all training rows", remedy="leave it out")
        if name in wanted.categories:
            categories = sorted(values, key=lambda value: (-values[value], value))[:MOST]
            columns.append(Column(name, tuple(categories)))
            frequencies += [missing, *(values[category] for category in categories)]
        else:
            numbers, times = np.array([float(value) for value in values]), np.array(list(values.values()))
            edges = _edges(numbers, times)
            columns.append(Column(name, edges=edges))
            intervals = np.searchsorted(edges, numbers, side="right")
            frequencies += [missing, *np.bincount(intervals, times, len(edges) + 1).astype(int).tolist()]
    if len(frequencies) > len(VALUES):
        what = f"the columns beside the text have {len(frequencies):,} frequent values"
        raise UserError(what, f"at most {len(VALUES):,} can be told apart", "leave out columns of many values")
    order = np.argsort(-np.array(frequencies), kind="stable").tolist()
    characters = Composition(beside=tuple(columns)).characters()
    return tuple(columns), "".join(characters[number] for number in order)


def count_values(piece: SomeRows) -> list[Counter[str]]:
    """Count the values of each column beside the text in some rows, without blanks around them. Runs in a worker."""
    rows = [text.decode("utf-8").split(UNIT)[1:] for text in piece.texts().get(piece.records())]
    return [Counter(map(category, column)) for column in zip(*rows)]


def _edges(numbers: Floats, times: npt.NDArray[np.int64]) -> tuple[float, ...]:
    """Return the quantiles of numbers that occur several times, without the smallest one, ascending."""
    order = np.argsort(numbers)
    reached = np.cumsum(times[order])
    wanted = np.arange(1, INTERVALS) * reached[-1] / INTERVALS
    edges = np.unique(numbers[order][np.searchsorted(reached, wanted, side="right")])
    return tuple(edges[edges > numbers.min()].tolist())
