"""Checks of the texts and labels that the estimator is given."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.utils import column_or_1d
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import _check_sample_weight

from crepe_dist.errors import UserError
from crepe_dist.preparing.frames import is_missing


class InvalidInput(UserError, ValueError):
    """Texts, labels or parameters that an estimator cannot use; scikit-learn expects a ``ValueError``."""


def texts_of(given: Any) -> list[str]:
    """Return the texts of a list, an array, a series, or a data frame or array of one column.

    Raises:
        InvalidInput: ``given`` is something else, or one of its values is not a string.
    """
    if isinstance(given, (str, bytes)) or not hasattr(given, "__len__") or not hasattr(given, "__iter__"):
        raise InvalidInput(
            f"the texts are {given!r:.40}", f"that is of type {type(given).__name__}", "give a list of strings"
        )
    shape: tuple[int, ...] = getattr(given, "shape", (len(given),))
    if len(shape) == 2 and shape[1] == 1:
        given = given.iloc[:, 0] if hasattr(given, "iloc") else np.asarray(given)[:, 0]
    elif len(shape) != 1:
        raise InvalidInput(
            f"the texts have {len(shape)} dimensions: {' × '.join(map(str, shape))}",
            "a classifier of texts reads one column",
            "choose it, for instance frame['text'], or in a pipeline with ColumnTransformer",
        )
    values = given.tolist() if hasattr(given, "tolist") else list(given)
    for place, value in enumerate(values):
        if not isinstance(value, str):
            missing = is_missing(value)
            raise InvalidInput(
                f"text {place} is {'missing' if missing else 'not a string'}",
                f"it is {value!r:.40}, of type {type(value).__name__}",
                "leave such rows out, or replace them by ''; with pandas: column.fillna('')"
                if missing
                else "give strings",
            )
    return values


def labels_of(given: Any, texts: Sequence[str]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Return the classes, sorted and of the dtype of the labels, and the class of each text, int64 [n].

    Raises:
        ValueError: the labels are not one class for each text, or all the same.
    """
    if given is None:
        raise InvalidInput(
            "there are no labels", "fit requires y to be passed, but the target y is None", "give labels"
        )
    if _are_several(given):
        raise InvalidInput(
            "the texts have several labels each",
            "this estimator gives a text one class",
            'prepare a data set with crepe_dist.prepare(…, labels="several") and train on it',
        )
    labels = column_or_1d(given, warn=True)
    if len(labels) != len(texts):
        raise InvalidInput(
            f"there are {len(texts):,} texts and {len(labels):,} labels", remedy="give a label for every text"
        )
    missing = [place for place, label in enumerate(labels.tolist()) if is_missing(label)]
    if missing:
        raise InvalidInput(
            f"label {missing[0]} is missing",
            f"{len(missing):,} of {len(labels):,} labels are None or NaN (Input y contains NaN)",
            "leave such rows out; with pandas: frame.dropna(subset=['label'])",
        )
    check_classification_targets(labels)
    classes, numbers = np.unique(labels, return_inverse=True)
    if len(classes) < 2:
        raise InvalidInput(
            "all labels are of one class",
            f"a classifier needs at least two; it is {classes.tolist()[:1]}",
            "give texts of two classes or more",
        )
    return classes, numbers


def _are_several(given: Any) -> bool:
    """Tell whether labels are lists of labels, or a matrix of 0 and 1."""
    if len(getattr(given, "shape", ())) == 2:
        return bool(given.shape[1] > 1)
    first = next(iter(given), None) if isinstance(given, (list, tuple)) else None
    return isinstance(first, (list, tuple, set, frozenset))


def weights_of(given: Any, texts: Sequence[str]) -> np.ndarray[Any, Any]:
    """Return the weight of each text, float64 [n].

    Raises:
        ValueError: the weights are not a number from 0 for each text.
    """
    weights: np.ndarray[Any, Any] = _check_sample_weight(given, texts, dtype=np.float64)
    if (weights < 0).any():
        place = int((weights < 0).argmax())
        raise InvalidInput(
            f"the weight of text {place} is {weights[place]:g}",
            "Negative values in data passed to sample_weight",
            "give weights from 0",
        )
    return weights
