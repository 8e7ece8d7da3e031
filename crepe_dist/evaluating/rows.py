"""Loader of the rows to score, which are a split of a prepared data set or the rows of a labelled file.

A file is read in the same way as the training data of the model.
"""

import shlex
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from crepe_dist import invocation
from crepe_dist.data.dataset import MANIFEST, SAMPLE, Dataset, open_dataset
from crepe_dist.data.targets import MULTILABEL
from crepe_dist.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from crepe_dist.errors import UserError
from crepe_dist.formatting import excerpt, join_words, pluralize
from crepe_dist.predicting.labelled import prepare_labelled
from crepe_dist.predicting.predictor import Predictor
from crepe_dist.preparing import remote
from crepe_dist.preparing.formats import ENCODING_REMEDY, NOT_UTF_8
from crepe_dist.preparing.reading import UNKNOWN_LABEL
from crepe_dist.preparing.sources import PIPE, ReadOptions, format_by_suffix
from crepe_dist.runs.checkpoint import CONFIG
from crepe_dist.runs.record import open_run_of_checkpoint
from crepe_dist.training.display import ProgressDisplay
from crepe_dist.training.training_data import open_data

MAX_SHOWN = 5  # Maximum number of labels or reasons in a note.
SHARED_TMPDIR_HINT = "set TMPDIR to a folder that all hosts share"


@dataclass(frozen=True)
class EvalRows:
    """Rows to score, and the numbers of rows that are not scored.

    Attributes:
        dataset: Data set. The split ``split`` contains only the rows to score.
        split: Name of the split.
        name: Description of the rows for the terminal.
        invalid: Number of invalid rows of a file, by reason.
        unknown: Number of rows of a file with a label that is not a class of the model, by label.
        seen: Number of rows with a text that the run used for training or model selection, by split of the run.
        unchecked: Reason why ``seen`` is unknown. Empty if it is known.
    """

    dataset: Dataset
    split: str
    name: str
    invalid: dict[str, int]
    unknown: dict[str, int]
    seen: dict[str, int]
    unchecked: str = ""

    def left_out(self) -> dict[str, Any]:
        """Return the numbers of rows that are not scored, as JSON values. ``seen`` is null if it is unknown."""
        seen = None if self.unchecked else self.seen
        return {"unusable": self.invalid, "unknown_labels": self.unknown, "seen": seen}

    def notes(self) -> list[str]:
        """Describe the rows that are not scored."""
        notes = []
        for counts, what in (
            (self.unknown, "with labels that are no classes of the model"),
            (self.invalid, "that are invalid"),
            (self.seen, "that the run was trained on"),
        ):
            if counts:
                shown = [f"{excerpt(name, 40)} ({count:,})" for name, count in list(counts.items())[:MAX_SHOWN]]
                shown += [f"{len(counts) - MAX_SHOWN:,} more"] if len(counts) > MAX_SHOWN else []
                notes.append(f"not scored: {pluralize(sum(counts.values()), 'row')} {what}: {join_words(shown)}")
        if NOT_UTF_8 in self.invalid:
            notes.append(f"  do:  {ENCODING_REMEDY}")
        if self.unchecked:
            notes.append(f"not checked whether the run was trained on these rows: {excerpt(self.unchecked)}")
        return notes


def is_labelled_file(source: str) -> bool:
    """Return True if a command-line argument specifies labelled data, and False if it specifies a model."""
    return is_file(source) or (Path(source) / MANIFEST).is_file()


def is_file(source: str) -> bool:
    """Return True if a source is a file, a URL or a pipe with labelled texts, and False if it is a folder."""
    path = Path(urlsplit(source).path if remote.is_url(source) else source)
    return source == PIPE or format_by_suffix(path) is not None


def load_eval_rows(
    source: str | None,
    predictor: Predictor,
    scratch: Path,
    split: str = "test",
    group: ProcessGroup = SINGLE_PROCESS,
    explicit: ReadOptions | None = None,
) -> EvalRows:
    """Open the rows to score. Drop rows that the model's run was trained on. Every rank must call this function.

    If the rows are a split of the run's own data set, no rows are dropped.

    Args:
        source: Prepared folder, labelled file, folder of texts or URL. ``-`` is standard input. ``None`` selects the
            data set of the run, or the sample if there is no run.
        predictor: Model.
        scratch: Temporary folder.
        split: Split of a prepared folder. A file has only the split ``test``.
        group: Process group.
        explicit: Format and columns of a file that the user specified. They take precedence over the options of the
            training data.

    Raises:
        UserError: There is no row to score, or a prepared folder was not prepared in the same way as the training data.
            The error is raised on every rank.
    """
    folder = None
    if source is None:
        record = group.run_on_all("run", lambda: open_run_of_checkpoint(predictor.path))
        folder = record.data_folder if record else Path(SAMPLE)
    elif source == SAMPLE or (Path(source) / MANIFEST).is_file():
        folder = Path(source)
    if folder is not None:
        dataset = open_data(str(folder), group, ProgressDisplay(is_root=False))
        group.run_on_all("model and data", lambda: _check_same_preparation(predictor, dataset))
        rows = EvalRows(dataset, split, f"{split} of {dataset.folder}", {}, {}, {})
    else:
        rows = _rows_of_file(str(source), predictor, scratch, group, explicit or ReadOptions())
    return group.run_on_all("rows", lambda: _drop_seen_rows(rows, split, predictor), compare_by=EvalRows.left_out)


def _check_same_preparation(predictor: Predictor, dataset: Dataset) -> None:
    """Check that a data set was prepared in the same way as the training data of the model."""
    pairs: dict[str, tuple[Any, Any]] = {
        "encoding": (predictor.encoding, dataset.encoder),
        "removal of HTML": (predictor.composition.strip_html, dataset.preprocessor.strip_html),
        "number of labels": (predictor.is_multilabel, dataset.label_kind == MULTILABEL),
        "classes": (predictor.classes, dataset.classes),
    }
    if different := [name for name, (of_model, of_dataset) in pairs.items() if of_model != of_dataset]:
        run, path = predictor.path.parent.parent, predictor.path
        arguments = (run if (run / CONFIG).is_file() else path, dataset.manifest["sources"][0]["file"])
        raise UserError(
            f"{dataset.folder} was not prepared in the same way as the training data of {path}",
            f"different: {join_words(different)}",
            "score the source file of this data set; the file is then read in the same way as the training data: "
            f"{invocation.command_line('evaluate')} {shlex.join(map(str, arguments))}",
        )


def _rows_of_file(
    source: str, predictor: Predictor, scratch: Path, group: ProcessGroup, explicit: ReadOptions
) -> EvalRows:
    name = "standard input" if source == PIPE else remote.redact_url(source)
    # Rank 0 prepares the file. The other ranks open the result, so the temporary folder must be shared.
    prepared = group.run_on_rank0("labelled file", lambda: prepare_labelled(predictor, source, scratch, explicit))
    folder, counts = group.broadcast_json([str(scratch / "data"), prepared], "labelled file")
    dataset = group.run_on_all(
        "labelled file", lambda: open_dataset(folder, trains=False), mismatch_hint=SHARED_TMPDIR_HINT
    )
    invalid = Counter(counts["reasons"]) - Counter({UNKNOWN_LABEL: sum(counts["unknown"].values())})
    return EvalRows(dataset, "test", name, dict(invalid.most_common()), counts["unknown"], {})


def _drop_seen_rows(rows: EvalRows, split: str, predictor: Predictor) -> EvalRows:
    """Drop the rows with texts that the model's run was trained on.

    If the data set is the run's own data set, nothing is dropped, because the user has selected the split.
    """
    dataset = rows.dataset
    if split not in dataset.splits:
        name, split_names = rows.name.removeprefix(f"{split} of "), list(dataset.splits)
        raise UserError(
            f"{name} has no {split} split",
            f"it has {join_words(split_names)}",
            f"choose another split: --split {split_names[-1]}",
        )
    documents, training_data = dataset.splits[split], predictor.metadata.get("data")
    if isinstance(training_data, dict) and training_data.get("fingerprint") == dataset.fingerprint:
        return rows
    try:
        if (record := open_run_of_checkpoint(predictor.path)) is None:
            return replace(rows, unchecked="the model is not in the folder of its run")
        masks = record.seen_in_training(documents)
    except UserError as error:
        return replace(rows, unchecked=f"{error.what}; {error.why}" if error.why else error.what)
    counts: dict[str, int] = {}
    new = np.ones(len(documents), np.bool_)
    for name, mask in masks.items():
        counts |= {f"{name} split": int((mask & new).sum())} if (mask & new).any() else {}
        new &= ~mask
    splits = {**dataset.splits, split: documents.select(np.flatnonzero(new))} if counts else dataset.splits
    if not new.any():
        raise UserError(
            f"none of the {pluralize(len(documents), 'row')} of {rows.name} can be scored",
            "the run was trained on all of these texts",
            f"give other rows, or score the test split of the run: {invocation.command_line('evaluate')} {record.path}",
        )
    return replace(rows, dataset=replace(dataset, splits=splits), seen=counts)
