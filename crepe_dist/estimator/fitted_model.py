"""A trained model in memory: the files of its checkpoint, which hold parameters and JSON only."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from crepe_dist.data.text_preprocessing import FIELD_SEPARATOR, describe_unusable_number
from crepe_dist.elastic.training_subprocess import NO_REPORTS, error_from_log, iter_log_lines, training_subprocess
from crepe_dist.errors import UserError, escape_controls
from crepe_dist.files.folders import temporary_folder
from crepe_dist.files.json_file import read_json
from crepe_dist.files.safe_read import read_bytes
from crepe_dist.predicting.predictor import MAX_CHECKPOINT_BYTES, Predictor
from crepe_dist.preparing.dataframe_source import write_table
from crepe_dist.preparing.flags import PreparationFlags
from crepe_dist.preparing.formats.columns import ColumnSpec

Files = dict[str, bytes]
EPOCH = re.compile(r"(\[rank 0\] )?epoch \d")  # start of the line of an epoch
TEST = re.compile(r" test [^(]*\(loss [^)]*\) ")  # in that line; the test split is one of the texts
DEFAULT_VALIDATION_FRACTION = (
    0.1  # share of the texts that tell whether unlabelled ones help, or which answers are sure
)


def fit_checkpoint(
    table: Mapping[str, Sequence[Any]],
    unlabelled: Sequence[str],
    settings: Mapping[str, Any],
    *,
    max_length: int | None,
    validation_fraction: float,
    processes: int,
    verbose: int = 0,
    feature_columns: ColumnSpec,
    multilabel: bool,
) -> Files:
    """Train on texts in processes and folders of their own, which are gone afterwards; return the checkpoint's files.

    Args:
        table: columns "text", "label" (numbers of the classes), and, if the texts have weights in the loss, "weight".
        unlabelled: texts without labels.
        settings: settings of training by their dotted names.
        length, validation, processes, verbose: as for ``CrepeClassifier``.
        beside: columns whose values follow the texts.
        several: a label is a list of numbers.
    """
    table = {**table, **_values(table["text"], feature_columns)}
    # The test split, which training needs, is a copy of one of the texts.
    first = next((row for row, text in enumerate(table["text"]) if text.strip()), 0)
    parts = {"train": table, "test": {name: column[first : first + 1] for name, column in table.items()}}
    parts |= {"unlabelled": {"text": unlabelled, **_values(unlabelled, feature_columns)}} if unlabelled else {}
    wanted = replace(feature_columns, label="label", texts=("text",), weight="weight" if "weight" in table else None)
    with temporary_folder() as folder:
        files = {name: folder / f"{name}.jsonl" for name in parts}
        for name, part in parts.items():
            write_table(part, files[name], wanted, labelled=name != "unlabelled")
        PreparationFlags(
            source=(str(files["train"]),),
            out=folder / "data",
            test=str(files["test"]),
            unlabelled=(str(files["unlabelled"]),) if unlabelled else (),
            label="label",
            labels="multilabel" if multilabel else "single",
            text=("text",),
            weight=wanted.weight,
            category=feature_columns.categories,
            number=feature_columns.numbers,
            seed=settings["training.seed"] % 2**32,
            feature_len=max_length or "auto",
            validation=validation_fraction,
            max_bad=1.0,
            processes=1,
        ).prepare(None, "")
        settings = {**settings, "data.source": str(folder / "data"), "run_dir": str(folder / "run"), **NO_REPORTS}
        with training_subprocess(settings, folder, processes) as process:
            for line in iter_log_lines(process, folder) if verbose else ():
                if verbose > 1 or EPOCH.match(line):
                    print(escape_controls(TEST.sub("", line)), flush=True)
            code = process.wait()
        if code != 0:
            raise error_from_log(folder, code)
        path = folder / "run" / read_json(folder / "run" / "result.json")["checkpoint"]
        return {file.name: read_bytes(file, MAX_CHECKPOINT_BYTES) for file in (path, path.with_suffix(".json"))}


def _values(texts: Sequence[str], beside: ColumnSpec) -> dict[str, list[str]]:
    """Divide rows: return their texts and values by the names of the columns."""
    if taken := {"text", "label", "weight"}.intersection(beside.feature_columns):
        raise UserError(f"the column beside the text is called {taken.pop()}", remedy="rename it")
    if not beside.feature_columns:
        return {"text": list(texts)}
    table = dict(
        zip(("text", *beside.feature_columns), map(list, zip(*(text.split(FIELD_SEPARATOR) for text in texts))))
    )
    for name in beside.numbers:
        for row, value in enumerate(table[name]):
            if problem := describe_unusable_number(name, value):
                raise UserError(f"row {row}: {problem}", remedy="give numbers, or leave the value out")
    return table


def probabilities(predictor: Predictor, texts: Sequence[str], classes: int) -> npt.NDArray[np.float64]:
    """Return the probability of each class for each text, float64 [n, classes]; rows sum to 1, but for several labels.

    A class of which training saw only blank texts has probability 0.
    """
    result = np.zeros((len(texts), classes))
    for row, prediction in zip(result, predictor.predict_stream(iter(texts))):
        for label, probability in prediction.ranking:
            row[int(label)] = probability
    return result if predictor.is_multilabel else result / result.sum(axis=1, keepdims=True)
