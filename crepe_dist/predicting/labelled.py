"""Texts with their labels, from a table in memory."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from crepe_dist.data.targets import SEVERAL, SOFT
from crepe_dist.errors import UserError
from crepe_dist.preparing.checking import NO_LABEL
from crepe_dist.preparing.formats.columns import Wanted
from crepe_dist.preparing.formats.rows import check_text
from crepe_dist.preparing.frames import is_table, write_table
from crepe_dist.preparing.labelling import Labelling
from crepe_dist.preparing.opening import open_source
from crepe_dist.preparing.sources import Reading, Source
from crepe_dist.scratch import scratch

COLUMNS = ("label", "label_columns")  # of the labels; a model that ``fit`` returns remembers them


def check_column(what: str, name: object) -> None:
    """Raise ``UserError`` unless ``name`` can name a column."""
    if not isinstance(name, (str, type(None))):
        raise UserError(
            f"the column of the {what} cannot be of type {type(name).__name__}",
            "a column is given by its name",
            'give texts and labels as one table: {"text": texts, "label": labels}',
        )


def read_labelled(table: Any, wanted: Wanted, classes: Sequence[str], *, several: bool) -> tuple[list[str], list[Any]]:
    """Return the texts of a table and the label of each: its class, that of the largest share, or the set of several.

    Raises:
        UserError: the columns cannot be chosen, a row has no text or label, or a label is not one of ``classes``.
    """
    check_column("label", wanted.label)
    if not is_table(table):
        raise UserError(
            f"the labelled texts cannot be of type {type(table).__name__}",
            "they are a table with a column of texts and one of labels",
            'give a data frame, or {"text": texts, "label": labels}; crepe evaluate scores files',
        )
    labelling = Labelling(SEVERAL if several else SOFT)
    texts: list[str] = []
    labels: list[Any] = []
    bad: list[tuple[int, str]] = []

    def name(label: str) -> str:
        label = label.strip()
        if label not in classes:
            raise ValueError(f"the model has no class {label!r:.40}" if label else NO_LABEL)
        return label

    with scratch() as folder:
        try:
            read = write_table(table, folder / "table", wanted)
        except UserError as error:
            remedy = "name the column: model.score(table, label=…)" if "--" in error.remedy else error.remedy
            raise UserError(error.what, error.why, remedy) from None
        source = Source(folder / "table", "the table", "test", "jsonl")
        for parsed in open_source(source, Reading(columns=read, labelling=labelling)).parsed("the table"):
            bad += [(row.line, row.reason) for row in parsed.bad]
            for row in parsed.rows:
                try:
                    check_text(row.text)
                    shares = json.loads(labelling.label(row.label, name))
                except ValueError as error:
                    bad.append((row.line, str(error)))
                    continue
                texts.append(row.text)
                labels.append(set(shares) if several else max(shares, key=shares.__getitem__))
    if bad:
        raise UserError(
            f"{len(bad):,} of {len(bad) + len(texts):,} rows cannot be scored",
            f"row {min(bad)[0]}: {min(bad)[1]}",
            "leave such rows out, or mend them",
        )
    return texts, labels
