"""Fitting of feature columns: find the categories of categorical columns and the quantile bins of numeric columns."""

from collections import Counter

import numpy as np
import numpy.typing as npt

from crepe_dist.data.characters import MAX_CHARACTERS, MAX_RARE_CHARACTERS
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
from crepe_dist.preparing.worker_pool import TASK_ROWS, WorkerPool

Floats = npt.NDArray[np.float64]
# Maximum number of categories of a column. There are not enough ids for more categories.
MAX_CATEGORIES = MAX_RARE_CHARACTERS + MAX_CHARACTERS
# Number of bins of a numeric column. Each bin has about the same number of rows.
NUM_QUANTILE_BINS = 16


def fit_feature_columns(
    spec: ColumnSpec, training: RowSubset, workers: WorkerPool
) -> tuple[tuple[FeatureColumn, ...], str]:
    """Fit the feature columns to the training rows.

    Returns:
        The feature columns, and the characters that encode their values. The characters are sorted by descending
        frequency. Characters of the same frequency are in the order of the columns and their values.

    Raises:
        UserError: A column has no values, or the columns have too many values.
    """
    counts: list[Counter[str]] = [Counter() for _ in spec.feature_columns]
    for chunk_counts in workers.map_in_order(count_values, training.iter_chunks(TASK_ROWS)):
        for total, column_counts in zip(counts, chunk_counts):
            total.update(column_counts)
    columns: list[FeatureColumn] = []
    frequencies: list[int] = []
    for name, values in zip(spec.feature_columns, counts):
        if name in spec.numbers:
            for nan in [value for value in values if value and not normalize_number(value)]:
                values[""] += values.pop(nan)
        missing = values.pop("", 0)
        if not values:
            raise UserError(
                f"column {name!r} is empty in all training rows",
                "a model cannot learn from it",
                "leave out this column",
            )
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
        what = f"the feature columns have {len(frequencies):,} frequent values"
        raise UserError(
            what, f"at most {len(FEATURE_CODE_POINTS):,} values can be encoded", "leave out columns with many values"
        )
    order = np.argsort(-np.array(frequencies), kind="stable").tolist()
    characters = TextPreprocessor(feature_columns=tuple(columns)).characters()
    return tuple(columns), "".join(characters[number] for number in order)


def count_values(subset: RowSubset) -> list[Counter[str]]:
    """Count the normalized values of each feature column in a subset of the rows. Runs in a worker."""
    rows = [text.split(FIELD_SEPARATOR)[1:] for text in subset.texts()]
    return [Counter(map(normalize_category, column)) for column in zip(*rows)]


def _quantile_edges(numbers: Floats, times: npt.NDArray[np.int64]) -> tuple[float, ...]:
    """Return the inner edges of quantile bins in ascending order. All edges are larger than the smallest number.

    Args:
        numbers: Distinct numbers.
        times: Number of rows with each number.
    """
    order = np.argsort(numbers)
    reached = np.cumsum(times[order])
    targets = np.arange(1, NUM_QUANTILE_BINS) * reached[-1] / NUM_QUANTILE_BINS
    edges = np.unique(numbers[order][np.searchsorted(reached, targets, side="right")])
    return tuple(edges[edges > numbers.min()].tolist())
