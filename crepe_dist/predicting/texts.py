"""Texts in memory, as callers give them: lists, arrays, series and tables, with or without labels."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from crepe_dist.data.targets import ONE, SEVERAL
from crepe_dist.errors import UserError
from crepe_dist.files import scratch
from crepe_dist.preparing.checking import class_name
from crepe_dist.preparing.formats import check_text
from crepe_dist.preparing.formats.columns import Wanted
from crepe_dist.preparing.frames import is_missing, is_table, text_column, write_table
from crepe_dist.preparing.opening import open_source
from crepe_dist.preparing.sources import Reading, Source
from crepe_dist.records import damaged
from crepe_dist.runs.checkpoint import ANOTHER

if TYPE_CHECKING:
    from crepe_dist.predicting.predictor import Predictor


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


def reading_of(predictor: Predictor, given: Reading) -> Reading:
    """Return the options to read labelled rows as the model's data were read, as far as that is known.

    Args:
        given: format, header and columns that take precedence.
    """
    reading = Reading()
    if (saved := predictor.about.get("reading")) is not None:
        try:
            reading = Reading.from_dict(saved)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise damaged(predictor.path.with_suffix(".json"), error, ANOTHER) from error
    kind = SEVERAL if predictor.several else ONE if reading.labelling.kind == SEVERAL else reading.labelling.kind
    mine, columns = given.columns, replace(reading.columns, weight=None, id=predictor.id, needs_id=False)
    if predictor.composition.columns:
        columns = replace(columns, title=None, texts=(), remembered=predictor.composition.columns)
    if mine.label or mine.labels:
        columns = replace(columns, label=mine.label, labels=mine.labels, needs_label=True)
    if mine.texts or mine.title:
        columns = replace(columns, title=mine.title, texts=mine.texts, remembered=())
    return replace(
        reading,
        format=given.format or reading.format,
        header=reading.header if given.header == "auto" else given.header,
        columns=columns,
        labelling=replace(reading.labelling, kind=kind),
        strip_html=predictor.composition.strip_html,
        encoding=reading.encoding if given.encoding == "utf-8" else given.encoding,
    )


def read_labelled(
    predictor: Predictor, table: Any, label: str | None, label_columns: Sequence[str]
) -> tuple[list[str], list[Any]]:
    """Return the texts of a table and the label of each: its class, that of the largest share, or the set of several.

    Args:
        label, label_columns: columns of the labels; by default those of the model's data.

    Raises:
        UserError: the columns cannot be chosen, a row has no text or label, or the model does not know a label.
    """
    check_column("label", label)
    if not is_table(table):
        remedy = 'give a data frame, or {"text": texts, "label": labels}; crepe evaluate scores files'
        raise UserError(f"the labelled texts cannot be of type {type(table).__name__}", remedy=remedy)
    reading = reading_of(predictor, Reading(columns=Wanted(label, labels=tuple(label_columns))))
    labelling = reading.labelling
    texts: list[str] = []
    labels: list[Any] = []
    bad: list[tuple[int, str]] = []

    def name(label: str) -> str:
        label = class_name(label, reading.class_names)
        if label not in predictor.classes:
            raise ValueError(f"the model has no class {label!r:.40}")
        return label

    with scratch() as folder:
        try:
            columns = write_table(table, folder / "table", reading.columns)
        except UserError as error:
            remedy = "name the column: model.score(table, label=…)" if "--" in error.remedy else error.remedy
            raise UserError(error.what, error.why, remedy) from None
        source = Source(folder / "table", "the table", "test", "jsonl")
        for parsed in open_source(source, replace(reading, columns=columns)).parsed():
            bad += [(row.line, row.reason) for row in parsed.bad]
            for row in parsed.rows:
                try:
                    check_text(row.text)
                    cell = row.label
                    shares = {name(cell): 1} if labelling.kind == ONE else json.loads(labelling.label(cell, name))
                except ValueError as error:
                    bad.append((row.line, str(error)))
                    continue
                texts.append(row.text)
                labels.append(set(shares) if predictor.several else max(shares, key=shares.__getitem__))
    if bad:
        what = f"{len(bad):,} of {len(bad) + len(texts):,} rows cannot be scored"
        raise UserError(what, f"row {min(bad)[0]}: {min(bad)[1]}", "leave such rows out, or mend them")
    return texts, labels
