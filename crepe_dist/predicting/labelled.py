"""Labelled rows, of files and of tables in memory, that are read as the data of a model were."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from crepe_dist.data.dataset import open_dataset
from crepe_dist.data.targets import MULTILABEL, SINGLE_LABEL
from crepe_dist.errors import UserError
from crepe_dist.files.folders import temporary_folder
from crepe_dist.formatting import excerpt, join_words
from crepe_dist.predicting.input_reader import check_column, labelled_options
from crepe_dist.preparing import remote
from crepe_dist.preparing.dataframe_source import is_table, write_table
from crepe_dist.preparing.formats.columns import ColumnSpec
from crepe_dist.preparing.formats.lines import LineReader, is_fasttext
from crepe_dist.preparing.preparation import prepare
from crepe_dist.preparing.sources import ReadOptions, find_scoring_sources, format_by_suffix
from crepe_dist.preparing.spec import PreparationSpec
from crepe_dist.preparing.splitting import SplitOptions

if TYPE_CHECKING:
    from crepe_dist.predicting.predictor import Predictor

MAX_SHOWN = 5  # labels in a warning


def accuracy(predictor: Predictor, table: Any, label: str | None, label_columns: Sequence[str]) -> float:
    """Return the accuracy on a table, or the micro F1 of several labels; see ``Predictor.score``."""
    check_column("label", label)
    if not is_table(table):
        remedy = 'give a data frame, or {"text": texts, "label": labels}; crepe evaluate scores files'
        raise UserError(f"the labelled texts cannot be of type {type(table).__name__}", remedy=remedy)
    right = count = 0
    with temporary_folder() as folder:
        try:
            bad = prepare_labelled(
                predictor, table, folder, ReadOptions(columns=ColumnSpec(label, labels=tuple(label_columns)))
            )
        except UserError as error:
            error.remedy = "name the column: model.score(table, label=…)" if "--" in error.remedy else error.remedy
            raise
        split = open_dataset(folder / "data", trains=False).splits["test"]
        if unusable := sum(bad["reasons"].values()):
            reasons = [f"{name} ({count:,})" for name, count in bad["reasons"].items()]
            unknown = f": {join_words([repr(excerpt(name, 40)) for name in [*bad['unknown']][:MAX_SHOWN]])}"
            unknown *= bool(bad["unknown"])
            what = f"{unusable:,} of {unusable + len(split):,} rows are not scored"
            warnings.warn(f"{what}: {join_words(reasons)}{unknown}", stacklevel=3)
        for rows in np.array_split(np.arange(len(split)), len(split) // 256 + 1):
            logits = predictor.logits(split.char_ids(rows))
            if predictor.thresholds is None:
                right, count = right + int((logits.argmax(axis=1) == split.labels[rows]).sum()), count + len(rows)
            else:
                wanted, given = (
                    split.targets.label_probs(rows) > 0,
                    predictor.probabilities(logits) >= predictor.thresholds,
                )
                right, count = right + 2 * int((wanted & given).sum()), count + int(wanted.sum() + given.sum())
    return right / max(count, 1)


def prepare_labelled(predictor: Predictor, source: Any, folder: Path, given: ReadOptions) -> dict[str, Any]:
    """Prepare a file, folder, URL or table as the test split of ``folder/data``; return the numbers of unusable rows.

    Args:
        given: format, header, columns and encoding that take precedence over those of the model's data.
    """
    reading, path = _read_options(predictor, given), source
    if is_table(source):
        path = str(folder / "table.jsonl")
        reading = replace(reading, columns=write_table(source, Path(path), reading.columns))
    elif remote.is_url(source):
        path = str(remote.download(source, folder / "copy"))
    if given.format is None and (format_by_suffix(Path(path)) or _has_labels(Path(path))):
        reading = replace(reading, format=None)
    classes, beside = tuple(predictor.classes), predictor.composition.beside
    spec = PreparationSpec(
        predictor.encoding,
        SplitOptions(test=0.0),
        reading,
        max_bad=1.0,
        classes=classes,
        feature_columns=beside,
        explicit_options=given,
    )
    done = prepare(find_scoring_sources(path, reading), folder / "data", spec)
    return dict(done["quarantine"])


def _has_labels(path: Path) -> bool:
    """Tell whether a file has fastText's lines, which need no other format."""
    if not path.is_file():
        return False
    lines = LineReader(path)
    lines.close()
    return is_fasttext(lines.head)


def _read_options(predictor: Predictor, given: ReadOptions) -> ReadOptions:
    """Return the options to read labelled rows as the data of the model were read."""
    options = labelled_options(predictor.reading, predictor.composition, predictor.id, given)
    kind = options.labelling.kind
    if predictor.is_multilabel != (kind == MULTILABEL):
        kind = MULTILABEL if predictor.is_multilabel else SINGLE_LABEL
    return replace(options, labelling=replace(options.labelling, kind=kind))
