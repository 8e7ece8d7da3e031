"""Scoring of a checkpoint on one split, with output to the terminal, a JSON file and an HTML page."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from crepe_dist.data.dataset import SAMPLE, Dataset, Split
from crepe_dist.data.targets import SEVERAL
from crepe_dist.data.typos import with_typos
from crepe_dist.distributed.collectives import Collectives
from crepe_dist.distributed.device import pick_for_inference
from crepe_dist.errors import UserError, visible
from crepe_dist.evaluating import mistakes
from crepe_dist.evaluating.label_scoring import score_labels
from crepe_dist.evaluating.typo_table import typo_table
from crepe_dist.files import write_json, write_text
from crepe_dist.predicting.predictor import Foreign, Predictor, check_finite, open_checkpoint
from crepe_dist.reports import data_page, run_findings
from crepe_dist.reports.run_page import score_page
from crepe_dist.reports.score_tables import unanswered
from crepe_dist.runs import checkpoint
from crepe_dist.runs.checkpoint import AnyScores
from crepe_dist.runs.run_record import RunRecord, open_run, quotes
from crepe_dist.runs.scores import Scores
from crepe_dist.settings import arguments
from crepe_dist.training.display import Display
from crepe_dist.training.evaluation import evaluate
from crepe_dist.training.label_evaluation import evaluate_labels
from crepe_dist.training.training_data import open_data
from crepe_dist.wording import counted, percent


def score(given: Any, world: Collectives) -> None:
    """Score a checkpoint as the flags of ``evaluate`` say; every rank calls this, and rank 0 writes the output.

    Raises:
        UserError: on every rank, if the checkpoint or the data set cannot be opened, or if they do not match.
    """
    path = world.agree("checkpoint", lambda: checkpoint.find(given.checkpoint), same=lambda path: path.name)
    if world.is_root:
        checkpoint.announce(path)
    dataset, predictor = _open(path, given, world)
    split = dataset.splits[given.split]
    options = {"batch_size": given.batch_size, "world": world}
    if predictor.thresholds is not None:
        labelling = partial(evaluate_labels, predictor.engine, **options, thresholds=predictor.thresholds)
        right = score_labels(_finite(labelling), split, dataset, given, world, path)
        if world.is_root:
            _write_mistakes(given, predictor, dataset, right)
        return
    scoring = _finite(partial(evaluate, predictor.engine, **options, calibration=predictor.calibration))
    scores, encoding = scoring(split), dataset.encoding
    noisy = {rate: scoring(with_typos(split, rate, encoding=encoding)) if rate else scores for rate in given.typos}
    if world.is_root:
        print(_text(scores, dataset.classes, _never_predicted(scores, dataset, path)))
        if found := mistakes.worst(scores, dataset, given.split):
            print(f"\n{found}")
        if noisy:
            print(f"\n{typo_table(noisy)}")
        _write_mistakes(given, predictor, dataset, scores.right)
        if given.json is not None:
            numbers = {**_numbers(scores, dataset.classes), "typos": _typo_rows(noisy)}
            write_json(given.json, numbers)
        if given.html is not None:
            write_text(given.html, _page(scores, dataset, predictor, given.split, path))


def _finite(scoring: Callable[[Split], AnyScores]) -> Callable[[Split], Any]:
    """Refuse scores with a loss that is not finite; it is the same on every rank."""

    def checked(split: Split) -> AnyScores:
        scores = scoring(split)
        check_finite(scores.loss)
        return scores

    return checked


def _open(path: Path, given: Any, world: Collectives) -> tuple[Dataset, Predictor]:
    def open_model() -> Predictor:
        foreign = Foreign(**arguments.foreign(given))
        predictor = open_checkpoint(path, foreign, device)
        _check(predictor, dataset, given.split, path, is_default=not given.checkpoint)
        return predictor

    source = given.data or world.agree("data", lambda: _data_of(path))
    dataset = open_data(source, world, Display(), data_page.page)
    device = pick_for_inference(given.device, world)
    predictor = world.agree("model", open_model)
    if world.is_root:
        documents = counted(len(dataset.splits[given.split]), "document")
        print(f"{visible(path.name)} on {given.part} of {dataset.folder}, {documents}\n")
    return dataset, predictor


def _data_of(path: Path) -> str:
    """Return the folder of the data that a run was trained on; the sample for a checkpoint without a run."""
    record = _run_of(path)
    return str(record.data_folder) if record else SAMPLE


def _run_of(path: Path) -> RunRecord | None:
    run_dir = path.absolute().parent.parent
    return open_run(run_dir, path) if (run_dir / checkpoint.CONFIG).is_file() else None


def _check(predictor: Predictor, dataset: Dataset, split: str, path: Path, *, is_default: bool) -> None:
    """Check that the checkpoint matches the data set; ``is_default`` if no checkpoint was named."""
    name = f"the newest run, {path}" if is_default else str(path)
    if split not in dataset.splits:
        raise UserError(
            f"{dataset.folder} has no {split} split", f"it has {', '.join(dataset.splits)}", "choose another --part"
        )
    if predictor.encoding != dataset.encoding:
        mine, theirs = predictor.encoding, dataset.encoding
        raise UserError(
            "the checkpoint and the data set have different encodings",
            f"checkpoint ({name}): {mine.described()}; data set ({dataset.folder}): {theirs.described()}",
            "name a run that was trained on this data set, or use --data to name the data set that the run was trained "
            f"on, or one prepared with {mine.flags(path.with_suffix('.json'))}"
            + (" --strip-html" if predictor.composition.strip_html else ""),
        )
    if predictor.composition.strip_html != dataset.composition.strip_html:
        model = "strips" if predictor.composition.strip_html else "does not strip"
        raise UserError(
            f"the checkpoint {model} HTML, unlike the data set",
            f"checkpoint ({name}); data set ({dataset.folder})",
            f"prepare the data {'with' if predictor.composition.strip_html else 'without'} --strip-html",
        )
    if (predictor.thresholds is not None) != (dataset.labelled == SEVERAL):
        has = [
            "several labels" if several else "one class"
            for several in (predictor.thresholds is not None, dataset.labelled == SEVERAL)
        ]
        raise UserError(
            f"the checkpoint gives a document {has[0]}, the data set {has[1]}",
            f"checkpoint ({name}); data set ({dataset.folder})",
            "use --data to name the data set that the run was trained on",
        )
    if predictor.classes != dataset.classes:
        raise UserError(
            "the checkpoint and the data set have different classes",
            f"checkpoint ({name}): {', '.join(predictor.classes)}; "
            f"data set ({dataset.folder}): {', '.join(dataset.classes)}",
            "name a run that was trained on this data set, or use --data to name the data set that the run was trained "
            "on, or one with the same classes in the same order",
        )


def _never_predicted(scores: Scores, dataset: Dataset, path: Path) -> dict[str, str] | None:
    """Warn as the run's report does; without a run, with advice that fits the data set."""
    classes = [visible(name) for name in dataset.classes]
    with suppress(UserError):  # the scores do not need the run's record
        if (record := _run_of(path)) is not None:
            return run_findings.never_predicted(record, scores, classes)
    return unanswered(scores, classes, dataset.class_counts("train").tolist())


def _text(scores: Scores, classes: list[str], missed: dict[str, str] | None) -> str:
    classes = [visible(name) for name in classes]
    table = scores.per_class(classes)
    formats = {"precision": percent, "recall": percent, "f1": "{:.3f}".format}
    shown = table.assign(**{name: table[name].map(form) for name, form in formats.items()})
    shown.loc[~scores.confusion.any(axis=0), "precision"] = "–"
    shown.loc[~scores.confusion.any(axis=1), ["recall", "f1"]] = "–"
    temperature = scores.calibration.temperature
    before = f" ({percent(scores.uncalibrated_error)} before temperature {temperature:.2f})" if temperature != 1 else ""
    confusion = pd.DataFrame(scores.confusion, index=classes, columns=classes)
    return (
        f"accuracy {percent(scores.accuracy)}   macro F1 {scores.macro_f1:.3f}   loss {scores.loss:.4f}   "
        f"calibration error {percent(scores.calibration_error)}{before}\n\n{shown.to_string()}\n\n"
        f"confusion matrix (rows: true class, columns: predicted class)\n{confusion.to_string()}"
        + (f"\n\n{missed['what']}: {missed['why']}\n  do:  {missed['do']}" if missed else "")
    )


def _write_mistakes(given: Any, predictor: Predictor, dataset: Dataset, right: npt.NDArray[np.bool_] | None) -> None:
    if given.mistakes is not None and right is not None:
        count = mistakes.write(given.mistakes, predictor, dataset, given.split, right)
        print(f"\n{counted(count, 'mistake')} written to {visible(str(given.mistakes))}")


def _typo_rows(noisy: dict[float, Scores]) -> list[dict[str, float]]:
    return [
        {"rate": rate, "accuracy": scores.accuracy, "macro_f1": scores.macro_f1, "loss": scores.loss}
        for rate, scores in noisy.items()
    ]


def _page(scores: Scores, dataset: Dataset, predictor: Predictor, split: str, path: Path) -> str:
    about = {
        "checkpoint": path.name,
        "data": str(dataset.folder),
        "part": split,
        "encoding": predictor.encoding.to_dict(),
    }
    quoted = quotes(dataset, split, [mistake.row for mistake in scores.mistakes])
    return score_page(scores, dataset.classes, quoted, about)


def _numbers(scores: Scores, classes: list[str]) -> dict[str, Any]:
    return {
        "accuracy": scores.accuracy,
        "macro_f1": scores.macro_f1,
        "calibration_error": scores.calibration_error,
        "uncalibrated_error": scores.uncalibrated_error,
        "documents": scores.documents,
        "classes": classes,
        "per_class": scores.per_class(classes).to_dict(orient="index"),
        **{name: value for name, value in scores.to_dict().items() if name != "right"},
    }
