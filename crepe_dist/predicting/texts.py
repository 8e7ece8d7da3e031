"""Texts in memory, as callers give them: lists, arrays, series and tables."""

from __future__ import annotations

from typing import Any

from crepe_dist.errors import UserError
from crepe_dist.preparing.formats.columns import Wanted
from crepe_dist.preparing.frames import is_missing, is_table, text_column


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
    # A set has no order for the answers.
    if isinstance(texts, (str, bytes, bytearray, set, frozenset)) or not hasattr(texts, "__iter__") or shape == ():
        remedy = "give a list of strings, or a data frame; put a single text into a list: [text]"
        raise InvalidInput(f"the texts are of type {type(texts).__name__}", remedy=remedy)
    if shape is not None and len(shape) == 2 and shape[1] == 1 and hasattr(texts, "ravel"):
        texts = texts.ravel()
    elif shape is not None and len(shape) != 1:
        remedy = "choose one column: array[:, 0]; in a pipeline with ColumnTransformer"
        raise InvalidInput(f"the texts have {len(shape)} dimensions: {' × '.join(map(str, shape))}", remedy=remedy)
    values = texts.tolist() if hasattr(texts, "tolist") else list(texts)
    for row, value in enumerate(values):
        if not isinstance(value, str):
            what = f"text {row} is {'missing' if is_missing(value) else 'not a string'}: {value!r:.40}"
            remedy = "decode bytes; leave missing texts out, or replace them by '' (column.fillna(''))"
            raise InvalidInput(what, remedy=remedy)
    return values


def check_column(what: str, name: object) -> None:
    """Raise ``UserError`` unless ``name`` can name a column."""
    if not isinstance(name, (str, type(None))):
        remedy = 'give its name, and texts and labels as one table: {"text": texts, "label": labels}'
        raise UserError(f"the column of the {what} cannot be of type {type(name).__name__}", remedy=remedy)
