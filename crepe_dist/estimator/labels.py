"""Checks of the labels and weights that the estimator is given."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.utils import column_or_1d
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import _check_sample_weight

from crepe_dist.predicting.texts import InvalidInput
from crepe_dist.preparing.frames import is_missing

ABSENT = -1  # label and class of a text that has none


def labels_of(y: Any, texts: Sequence[str]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Return the classes, sorted and of the dtype of the labels, and the class of each text, int64 [n], or ``ABSENT``.

    As in scikit-learn's semi-supervised estimators, the number -1 means that a text has no label. With one other label,
    it is a class.
    """
    if y is None:
        raise InvalidInput(
            "there are no labels", "fit requires y to be passed, but the target y is None", "give labels"
        )
    if _are_several(y):
        raise InvalidInput(
            "the texts have several labels each",
            "this estimator gives a text one class",
            'train with crepe_dist.fit({"text": texts, "label": labels}, labels="several")',
        )
    labels = column_or_1d(y, warn=True)
    if len(labels) != len(texts):
        raise InvalidInput(
            f"there are {len(texts):,} texts and {len(labels):,} labels", remedy="give a label for every text"
        )
    missing = [row for row, label in enumerate(labels.tolist()) if is_missing(label)]
    if missing:
        raise InvalidInput(
            f"label {missing[0]} is missing",
            f"{len(missing):,} of {len(labels):,} labels are None or NaN (Input y contains NaN)",
            "leave such rows out; with pandas: frame.dropna(subset=['label'])",
        )
    check_classification_targets(labels)
    classes, numbers = np.unique(labels, return_inverse=True)
    if labels.dtype.kind in "if" and len(classes) > 2 and classes[0] == ABSENT:
        classes, numbers = classes[1:], numbers - 1
        count = f"{np.count_nonzero(numbers == ABSENT):,} labels are -1"
        warnings.warn(f"{count}, which means no label, as in scikit-learn; if it is a class, rename it", stacklevel=3)
    if len(classes) < 2:
        raise InvalidInput(
            "all labels are of one class",
            f"a classifier needs at least two; it is {classes.tolist()[:1]}",
            "give texts of two classes or more",
        )
    return classes, numbers


def _are_several(y: Any) -> bool:
    """Tell whether labels are lists of labels, or a matrix of 0 and 1."""
    if len(getattr(y, "shape", ())) == 2:
        return bool(y.shape[1] > 1)
    first = next(iter(y), None) if isinstance(y, (list, tuple)) else None
    return isinstance(first, (list, tuple, set, frozenset))


def weights_of(sample_weight: Any, texts: Sequence[str]) -> np.ndarray[Any, Any]:
    """Return the weight of each text, float64 [n]."""
    weights: np.ndarray[Any, Any] = _check_sample_weight(sample_weight, texts, dtype=np.float64)
    if (weights < 0).any():
        row = int((weights < 0).argmax())
        raise InvalidInput(
            f"the weight of text {row} is {weights[row]:g}",
            "Negative values in data passed to sample_weight",
            "give weights from 0",
        )
    return weights
