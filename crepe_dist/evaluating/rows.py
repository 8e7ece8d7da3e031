"""Rows to score: a split of a prepared data set, or a labelled file that is read as the model's data were."""

from __future__ import annotations

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
from crepe_dist.runs.run_dir import open_run_of_checkpoint
from crepe_dist.training.display import ProgressDisplay
from crepe_dist.training.training_data import open_data

MAX_SHOWN = 5  # labels, or reasons
SHARED = "set TMPDIR to a folder that all hosts share"


@dataclass(frozen=True)
class EvalRows:
    """Rows to score, and the number of others.

    Attributes:
        dataset: their data set; its split ``split`` has only the rows to score.
        name: description for people.
        unusable: rows of a file that cannot be used, by reason.
        unknown: rows of a file with a label that the model does not know, by label.
        seen: rows with texts that decided the parameters of the run, by its split.
        unchecked: reason why ``seen`` is not known.
    """

    dataset: Dataset
    split: str
    name: str
    invalid: dict[str, int]
    unknown: dict[str, int]
    seen: dict[str, int]
    unchecked: str = ""

    def left_out(self) -> dict[str, Any]:
        """Return the numbers of rows that are not scored as JSON values; ``seen`` is null if it is not known."""
        seen = None if self.unchecked else self.seen
        return {"unusable": self.invalid, "unknown_labels": self.unknown, "seen": seen}

    def notes(self) -> list[str]:
        """Describe the rows that are not scored."""
        notes = []
        for counts, what in (
            (self.unknown, "of labels that the model does not know"),
            (self.invalid, "that cannot be used"),
            (self.seen, "that the run has learnt from"),
        ):
            if counts:
                named = [f"{excerpt(name, 40)} ({count:,})" for name, count in list(counts.items())[:MAX_SHOWN]]
                named += [f"{len(counts) - MAX_SHOWN:,} more"] if len(counts) > MAX_SHOWN else []
                notes.append(f"not scored: {pluralize(sum(counts.values()), 'row')} {what}: {join_words(named)}")
        if NOT_UTF_8 in self.invalid:
            notes.append(f"  do:  {ENCODING_REMEDY}")
        if self.unchecked:
            notes.append(f"not checked whether the run has learnt from these rows: {excerpt(self.unchecked)}")
        return notes


def is_labelled_file(source: str) -> bool:
    """Tell whether a name is that of data, which can be scored, rather than of a model."""
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
    world: ProcessGroup = SINGLE_PROCESS,
    given: ReadOptions | None = None,
) -> EvalRows:
    """Open the rows to score, without those that the model's run has learnt from; every rank calls it.

    Args:
        source: prepared folder; or a labelled file, folder or URL, or ``-`` for standard input; ``None``: the data of
            the run, or the sample.
        scratch: temporary folder.
        split: split of a prepared folder; a file is a test split as a whole.
        given: format and columns of a file, in place of those of the data of the run.

    Raises:
        UserError: on every rank, if there is no row to score, or a prepared folder was prepared otherwise than the
            model's data.
    """
    folder = None
    if source is None:
        record = world.run_on_all("run", lambda: open_run_of_checkpoint(predictor.path))
        folder = record.data_folder if record else Path(SAMPLE)
    elif source == SAMPLE or (Path(source) / MANIFEST).is_file():
        folder = Path(source)
    if folder is not None:
        dataset = open_data(str(folder), world, ProgressDisplay(is_root=False))
        world.run_on_all("model and data", lambda: _check(predictor, dataset))
        rows = EvalRows(dataset, split, f"{split} of {dataset.folder}", {}, {}, {})
    else:
        rows = _of_file(str(source), predictor, scratch, world, given or ReadOptions())
    return world.run_on_all("rows", lambda: _drop_seen_rows(rows, split, predictor), compare_by=EvalRows.left_out)


def _check(predictor: Predictor, dataset: Dataset) -> None:
    """Check that a data set was prepared as the data of the model were."""
    strips = predictor.composition.strip_html, dataset.preprocessor.strip_html
    pairs: dict[str, tuple[Any, Any]] = {
        "columns beside the text": (predictor.composition.beside, dataset.preprocessor.beside),
        "encoding": (predictor.encoding, dataset.encoder),
        "removal of HTML": strips,
        "number of labels": (predictor.is_multilabel, dataset.label_kind == MULTILABEL),
        "classes": (predictor.classes, dataset.classes),
    }
    if different := [name for name, (mine, theirs) in pairs.items() if mine != theirs]:
        run, path = predictor.path.parent.parent, predictor.path
        words = (run if (run / CONFIG).is_file() else path, dataset.manifest["sources"][0]["file"])
        raise UserError(
            f"{dataset.folder} was not prepared as the data of {path} were",
            f"different: {join_words(different)}",
            "score the file that it was prepared from, which is then read as those were: "
            f"{invocation.command_line('evaluate')} {shlex.join(map(str, words))}",
        )


def _of_file(source: str, predictor: Predictor, scratch: Path, world: ProcessGroup, given: ReadOptions) -> EvalRows:
    name = "standard input" if source == PIPE else remote.redact_url(source)
    done = world.run_on_rank0("labelled file", lambda: prepare_labelled(predictor, source, scratch, given))
    folder, counts = world.broadcast_object([str(scratch / "data"), done], "labelled file")
    dataset = world.run_on_all("labelled file", lambda: open_dataset(folder, trains=False), mismatch_hint=SHARED)
    unusable = Counter(counts["reasons"]) - Counter({UNKNOWN_LABEL: sum(counts["unknown"].values())})
    return EvalRows(dataset, "test", name, dict(unusable.most_common()), counts["unknown"], {})


def _drop_seen_rows(rows: EvalRows, split: str, predictor: Predictor) -> EvalRows:
    """Leave out the rows that the model's run has learnt from, unless they are of a split of its own data."""
    dataset = rows.dataset
    if split not in dataset.splits:
        name, there = rows.name.removeprefix(f"{split} of "), list(dataset.splits)
        raise UserError(
            f"{name} has no {split} split", f"it has {join_words(there)}", f"choose another one: --split {there[-1]}"
        )
    documents, about = dataset.splits[split], predictor.metadata.get("data")
    if isinstance(about, dict) and about.get("fingerprint") == dataset.fingerprint:
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
            "the run has learnt from all of their texts",
            f"give other rows, or score its own test split: {invocation.command_line('evaluate')} {record.path}",
        )
    return replace(rows, dataset=replace(dataset, splits=splits), seen=counts)
