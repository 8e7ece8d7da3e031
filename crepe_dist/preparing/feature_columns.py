"""Counting of the values of columns beside the text: which categories there are, and where intervals of numbers end."""

from __future__ import annotations

from collections import Counter

import numpy as np
import numpy.typing as npt

from crepe_dist.data.characters import MAX_CHARACTERS, MAX_PAIRED
from crepe_dist.data.text_preprocessing import (
    FEATURE_CODE_POINTS,
    FIELD_SEPARATOR,
    FeatureColumn,
    TextPreprocessor,
    normalize_category,
    normalize_number,
)
from crepe_dist.errors import UserError
from crepe_dist.preparing.formats.columns import ColumnSpec
from crepe_dist.preparing.spool import RowSubset
from crepe_dist.preparing.worker_pool import WorkerPool

TASK_ROWS = 1 << 15  # rows per task
Floats = npt.NDArray[np.float64]
MAX_CATEGORIES = MAX_PAIRED + MAX_CHARACTERS  # categories of a column of which some can have codes
NUM_QUANTILE_BINS = 16  # of a number, with about as many rows in each


def fit_feature_columns(
    spec: ColumnSpec, training: RowSubset, workers: WorkerPool
) -> tuple[tuple[FeatureColumn, ...], str]:
    """Describe the columns beside the text by the training rows; return them and the characters of their values.

    The characters are sorted by frequency, the highest first, and then by column and value.

    Raises:
        UserError: a column has no values, or there are too many columns of many values.
    """
    counts: list[Counter[str]] = [Counter() for _ in spec.feature_columns]
    pieces = (training[start : start + TASK_ROWS] for start in range(0, len(training), TASK_ROWS))
    for found in workers.map_in_order(count_values, pieces):
        for total, of_piece in zip(counts, found):
            total.update(of_piece)
    columns: list[FeatureColumn] = []
    frequencies: list[int] = []
    for name, values in zip(spec.feature_columns, counts):
        if name in spec.numbers:
            for nan in [value for value in values if value and not normalize_number(value)]:
                values[""] += values.pop(nan)
        missing = values.pop("", 0)
        if not values:
            raise UserError(f"column {name!r} is empty in all training rows", remedy="leave it out")
        if name in spec.categories:
            categories = sorted(values, key=lambda value: (-values[value], value))[:MAX_CATEGORIES]
            columns.append(FeatureColumn(name, tuple(categories)))
            frequencies += [missing, *(values[category] for category in categories)]
        else:
            numbers, times = np.array([float(value) for value in values]), np.array(list(values.values()))
            edges = _quantile_edges(numbers, times)
            columns.append(FeatureColumn(name, edges=edges))
            intervals = np.searchsorted(edges, numbers, side="right")
            frequencies += [missing, *np.bincount(intervals, times, len(edges) + 1).astype(int).tolist()]
    if len(frequencies) > len(FEATURE_CODE_POINTS):
        what = f"the columns beside the text have {len(frequencies):,} frequent values"
        raise UserError(
            what, f"at most {len(FEATURE_CODE_POINTS):,} can be told apart", "leave out columns of many values"
        )
    order = np.argsort(-np.array(frequencies), kind="stable").tolist()
    characters = TextPreprocessor(beside=tuple(columns)).characters()
    return tuple(columns), "".join(characters[number] for number in order)


def count_values(subset: RowSubset) -> list[Counter[str]]:
    """Count the values of each column beside the text in some rows, without blanks around them. Runs in a worker."""
    rows = [text.decode("utf-8").split(FIELD_SEPARATOR)[1:] for text in subset.texts().get(subset.records())]
    return [Counter(map(normalize_category, column)) for column in zip(*rows)]


def _quantile_edges(numbers: Floats, times: npt.NDArray[np.int64]) -> tuple[float, ...]:
    """Return the quantiles of numbers that occur several times, without the smallest one, ascending."""
    order = np.argsort(numbers)
    reached = np.cumsum(times[order])
    wanted = np.arange(1, NUM_QUANTILE_BINS) * reached[-1] / NUM_QUANTILE_BINS
    edges = np.unique(numbers[order][np.searchsorted(reached, wanted, side="right")])
    return tuple(edges[edges > numbers.min()].tolist())
