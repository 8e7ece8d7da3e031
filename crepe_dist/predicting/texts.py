"""Texts in memory, as callers give them: lists, arrays, series and data frames."""

from __future__ import annotations

from typing import Any

from crepe_dist.errors import UserError
from crepe_dist.preparing.frames import is_missing, is_table, text_column

_NOT_TEXTS = (str, bytes, bytearray, set, frozenset)  # a set has no order for the answers


class InvalidInput(UserError, ValueError):
    """Texts, labels or parameters that cannot be used; scikit-learn expects a ``ValueError``."""


def texts_of(given: Any, remembered: tuple[str, ...] = ()) -> list[str]:
    """Return the texts of an iterable, an array, a series, or a table.

    The columns of a table, which is a data frame or a mapping of names to columns, are chosen as those of a file.

    Args:
        remembered: columns that a model was trained on.

    Raises:
        InvalidInput: ``given`` is something else, its columns cannot be chosen, or a text is not a string.
    """
    if is_table(given):
        try:
            given = text_column(given, remembered)
        except UserError as error:
            remedy = "choose a column: table['text']; in a pipeline with ColumnTransformer"
            raise InvalidInput(error.what, error.why, remedy) from None
    shape: tuple[int, ...] | None = getattr(given, "shape", None)
    if isinstance(given, _NOT_TEXTS) or not hasattr(given, "__iter__") or shape == ():
        raise InvalidInput(
            f"the texts are {given!r:.40}",
            f"that is of type {type(given).__name__}",
            "give a list of strings, or a data frame; put a single text into a list: [text]",
        )
    if shape is not None and len(shape) == 2 and shape[1] == 1 and hasattr(given, "ravel"):
        given = given.ravel()
    elif shape is not None and len(shape) != 1:
        raise InvalidInput(
            f"the texts have {len(shape)} dimensions: {' × '.join(map(str, shape))}",
            "a classifier of texts reads one column",
            "choose it: array[:, 0]; in a pipeline with ColumnTransformer",
        )
    values = given.tolist() if hasattr(given, "tolist") else list(given)
    for place, value in enumerate(values):
        if not isinstance(value, str):
            raise _no_text(place, value)
    return values


def _no_text(place: int, value: object) -> InvalidInput:
    missing = is_missing(value)
    remedy = "give strings"
    if missing:
        remedy = "leave such rows out, or replace them by ''; with pandas: column.fillna('')"
    elif isinstance(value, (bytes, bytearray)):
        remedy = "decode it: text.decode()"
    return InvalidInput(
        f"text {place} is {'missing' if missing else 'not a string'}",
        f"it is {value!r:.40}, of type {type(value).__name__}",
        remedy,
    )
