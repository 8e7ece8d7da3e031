"""A trained model in memory: the files of its checkpoint, which hold parameters and JSON only."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from crepe_dist.data.alphabet import Encoding
from crepe_dist.errors import visible
from crepe_dist.files import read_bytes, read_json
from crepe_dist.predicting.predictor import Predictor, load
from crepe_dist.preparing.auto_encoding import Fit
from crepe_dist.preparing.formats.columns import Wanted
from crepe_dist.preparing.frames import write_table
from crepe_dist.preparing.preparation import PrepareOptions, prepare
from crepe_dist.preparing.selection import SplitOptions
from crepe_dist.preparing.sources import Reading, find_sources
from crepe_dist.scratch import scratch
from crepe_dist.settings.options import LONGEST_FITTED
from crepe_dist.supervising.training_process import QUIET, failure, printed, training

Files = dict[str, bytes]
LARGEST = 1 << 34  # bytes of a checkpoint's file
EPOCH = re.compile(r"(\[rank 0\] )?epoch \d")  # start of the line of an epoch
TEST = re.compile(r" test [^(]*\(loss [^)]*\) ")  # in that line; the test split is one of the texts
JUDGING = 0.1  # share of the texts that tell whether unlabelled ones help
COLUMNS = Wanted("label", texts=("text",))


def train(
    texts: Sequence[str],
    numbers: npt.NDArray[np.int64],
    weights: npt.NDArray[np.float64] | None,
    settings: Mapping[str, Any],
    *,
    unlabelled: Sequence[str] = (),
    length: int | None,
    validation: float,
    seed: int,
    processes: int,
    verbose: int = 0,
) -> Files:
    """Train on texts in processes and folders of their own, which are gone afterwards; return the checkpoint's files.

    Args:
        numbers: class of each text, int64 [n].
        weights: weight of each text in the loss, float64 [n]; ``None``: all equal.
        unlabelled: texts without labels.
        settings: settings of training by their dotted names.
        length, validation, seed, processes, verbose: as for ``CrepeClassifier``.
    """
    with scratch() as folder:
        _prepare(
            {"label": numbers, "text": texts, "weight": weights},
            unlabelled,
            folder,
            length,
            SplitOptions(test=0, validation=validation or (JUDGING if unlabelled else 0), seed=seed),
        )
        settings = {
            **settings,
            "data.source": str(folder / "data"),
            "run_dir": str(folder / "run"),
            **QUIET,
        }
        with training(settings, folder, processes) as process:
            for line in printed(process, folder) if verbose else ():
                if verbose > 1 or EPOCH.match(line):
                    print(visible(TEST.sub("", line)), flush=True)
            code = process.wait()
        if code != 0:
            raise failure(folder, code)
        path = folder / "run" / read_json(folder / "run" / "result.json")["checkpoint"]
        return {file.name: read_bytes(file, LARGEST) for file in (path, path.with_suffix(".json"))}


def _prepare(
    columns: Mapping[str, Any], unlabelled: Sequence[str], folder: Path, length: int | None, split: SplitOptions
) -> None:
    """Prepare the texts as training rows. The test split, which training needs, is a copy of one of them."""
    table = {name: column for name, column in columns.items() if column is not None}
    read = replace(COLUMNS, weight="weight") if "weight" in table else COLUMNS
    first = next((row for row, text in enumerate(table["text"]) if text.strip()), 0)
    for name, rows in (("train", slice(None)), ("test", slice(first, first + 1))):
        part = {column: values[rows] for column, values in table.items()}
        write_table(part, folder / f"{name}.jsonl", read)
    if unlabelled:
        write_table({"text": unlabelled}, folder / "unlabelled.jsonl", COLUMNS, labelled=False)
    more = [str(folder / "unlabelled.jsonl")] if unlabelled else []
    sources = find_sources([str(folder / "train.jsonl")], test=str(folder / "test.jsonl"), unlabelled=more)
    encoding = Encoding(feature_len=LONGEST_FITTED if length is None else length)
    options = PrepareOptions(Reading(columns=read), max_bad=1.0, processes=1)
    prepare(sources, folder / "data", encoding, split, options, Fit(length is None, "needed"))


def open_files(files: Files, device: str) -> Predictor:
    """Open the files of a checkpoint, as ``train`` returns them."""
    with scratch() as folder:
        for name, content in files.items():
            (folder / Path(name).name).write_bytes(content)
        return load(next(folder.glob("*.params")), device=device)


def probabilities(predictor: Predictor, texts: Sequence[str], classes: int) -> npt.NDArray[np.float64]:
    """Return the probability of each class for each text, float64 [n, classes]; rows sum to 1.

    A class of which training saw only blank texts has probability 0.
    """
    result = np.zeros((len(texts), classes))
    for row, prediction in zip(result, predictor.predict_stream(iter(texts))):
        for label, probability in prediction.ranking:
            row[int(label)] = probability
    result /= result.sum(axis=1, keepdims=True)
    return result
