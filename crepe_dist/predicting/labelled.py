"""Reader of labelled rows from files and data frames, in the same way as the training data of a model were read."""

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
from crepe_dist.preparing.preparation import prepare
from crepe_dist.preparing.sources import ReadOptions, find_scoring_sources
from crepe_dist.preparing.spec import PreparationSpec
from crepe_dist.preparing.splitting import SplitOptions

if TYPE_CHECKING:
    from crepe_dist.predicting.predictor import Predictor

MAX_SHOWN_LABELS = 5  # Number of labels in a warning.
BATCH_SIZE = 256  # Approximate number of texts in a batch.


def accuracy(predictor: "Predictor", table: Any, label: str | None, label_columns: Sequence[str]) -> float:
    """Return the accuracy on a table, or the micro F1 of a multilabel model; see ``Predictor.score``."""
    check_column("label", label)
    if not is_table(table):
        remedy = 'give a data frame, or {"text": texts, "label": labels}; crepe evaluate scores files'
        raise UserError(f"the labelled texts cannot be of type {type(table).__name__}", remedy=remedy)
    num_correct = num_total = 0
    with temporary_folder() as folder:
        try:
            invalid = prepare_labelled(
                predictor, table, folder, ReadOptions(columns=ColumnSpec(label, labels=tuple(label_columns)))
            )
        except UserError as error:
            error.remedy = "name the column: model.score(table, label=…)" if "--" in error.remedy else error.remedy
            raise
        split = open_dataset(folder / "data", trains=False).splits["test"]
        if num_invalid := sum(invalid["reasons"].values()):
            reasons = [f"{name} ({count:,})" for name, count in invalid["reasons"].items()]
            shown_labels = [repr(excerpt(name, 40)) for name in [*invalid["unknown"]][:MAX_SHOWN_LABELS]]
            unknown = f": {join_words(shown_labels)}" if shown_labels else ""
            what = f"{num_invalid:,} of {num_invalid + len(split):,} rows are not scored"
            warnings.warn(f"{what}: {join_words(reasons)}{unknown}", stacklevel=3)
        for rows in np.array_split(np.arange(len(split)), len(split) // BATCH_SIZE + 1):
            logits = predictor.logits(split.char_ids(rows))
            if predictor.thresholds is None:
                num_correct += int((logits.argmax(axis=1) == split.labels[rows]).sum())
                num_total += len(rows)
            else:
                # F1 is twice the true positives, divided by the sum of the true and the predicted labels.
                true = split.targets.label_probs(rows) > 0
                predicted = predictor.probabilities(logits) >= predictor.thresholds
                num_correct += 2 * int((true & predicted).sum())
                num_total += int(true.sum() + predicted.sum())
    return num_correct / max(num_total, 1)


def prepare_labelled(predictor: "Predictor", source: Any, folder: Path, explicit: ReadOptions) -> dict[str, Any]:
    """Prepare labelled rows as the test split of the data set ``folder/data``.

    Args:
        predictor: Model. The rows are read in the same way as its training data.
        source: File, folder, URL or table.
        folder: Temporary folder.
        explicit: Format, columns and encoding that the user specified. They take precedence over the options
            of the training data.

    Returns:
        The numbers of rows that cannot be scored: by reason (key ``reasons``), and by unknown label (key ``unknown``).
    """
    reading, path = _read_options(predictor, explicit), source
    if is_table(source):
        path = str(folder / "table.jsonl")
        reading = replace(reading, columns=write_table(source, Path(path), reading.columns))
    elif remote.is_url(source):
        path = str(remote.download(source, folder / "copy"))
    spec = PreparationSpec(
        predictor.encoding,
        SplitOptions(test=0.0),
        reading,
        max_bad=1.0,
        classes=tuple(predictor.classes),
    )
    manifest = prepare(find_scoring_sources(path, reading), folder / "data", spec)
    return dict(manifest["quarantine"])


def _read_options(predictor: "Predictor", explicit: ReadOptions) -> ReadOptions:
    """Return the options that read labelled rows in the same way as the training data of the model."""
    options = labelled_options(predictor.reading, predictor.composition, predictor.id, explicit)
    kind = options.labelling.kind
    if predictor.is_multilabel != (kind == MULTILABEL):
        kind = MULTILABEL if predictor.is_multilabel else SINGLE_LABEL
    return replace(options, labelling=replace(options.labelling, kind=kind))
