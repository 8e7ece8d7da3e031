"""Texts in memory, as callers give them: lists, arrays, series and data frames."""

from __future__ import annotations

from typing import Any

from crepe_dist.errors import UserError
from crepe_dist.preparing.formats.columns import Wanted
from crepe_dist.preparing.frames import is_missing, is_table, text_column

_NOT_TEXTS = (str, bytes, bytearray, set, frozenset)  # a set has no order for the answers


class InvalidInput(UserError, ValueError):
    """Texts, labels or parameters that cannot be used; scikit-learn expects a ``ValueError``."""


def texts_of(texts: Any, remembered: tuple[str, ...] = ()) -> list[str]:
    """Return the texts of an iterable, an array, a series, or a table.

    The columns of a table, which is a data frame or a mapping of names to columns, are chosen as those of a file.

    Args:
        remembered: columns that a model was trained on.

    Raises:
        InvalidInput: ``texts`` is something else, its columns cannot be chosen, or a text is not a string.
    """
    if is_table(texts):
        try:
            texts = text_column(texts, Wanted(remembered=remembered))
        except UserError as error:
            raise InvalidInput(error.what, error.why, "give one column of texts, such as table['text']") from None
    shape: tuple[int, ...] | None = getattr(texts, "shape", None)
    if isinstance(texts, _NOT_TEXTS) or not hasattr(texts, "__iter__") or shape == ():
        raise InvalidInput(
            f"the texts are {texts!r:.40}",
            f"that is of type {type(texts).__name__}",
            "give a list of strings, or a data frame; put a single text into a list: [text]",
        )
    if shape is not None and len(shape) == 2 and shape[1] == 1 and hasattr(texts, "ravel"):
        texts = texts.ravel()
    elif shape is not None and len(shape) != 1:
        raise InvalidInput(
            f"the texts have {len(shape)} dimensions: {' × '.join(map(str, shape))}",
            "a classifier of texts reads one column",
            "choose it: array[:, 0]; in a pipeline with ColumnTransformer",
        )
    values = texts.tolist() if hasattr(texts, "tolist") else list(texts)
    for row, value in enumerate(values):
        if not isinstance(value, str):
            raise InvalidInput(
                f"text {row} is {'missing' if is_missing(value) else 'not a string'}",
                f"it is {value!r:.40}, of type {type(value).__name__}",
                "give strings: decode bytes, and leave missing texts out or replace them by '' (column.fillna(''))",
            )
    return values
