"""Sentences about a run, and warnings with advice. The report, the model card, the terminal and exports show them."""

from __future__ import annotations

import shlex
from collections import defaultdict
from typing import TYPE_CHECKING, Any

import numpy as np

from crepe_dist.data.char_encoder import describe_truncation
from crepe_dist.data.text_preprocessing import PRIVATE
from crepe_dist.formatting import duration, join_words, number, percent, pluralize, truncate_to_width
from crepe_dist.model.backend import is_gpu_build
from crepe_dist.model.weights_io import config_class
from crepe_dist.native import library
from crepe_dist.reports.score_page import (
    LABEL_CELLS,
    LARGE_CALIBRATION_ERROR,
    accuracy_interval,
    describe_calibration,
    is_overconfident,
    majority,
    never_predicted_warning,
)
from crepe_dist.runs.metrics import loss_of
from crepe_dist.settings.config import flag

if TYPE_CHECKING:
    from crepe_dist.runs.run_dir import RunRecord
    from crepe_dist.runs.scores import AnyScores, MulticlassScores

WIDE_INTERVAL = 0.1  # width of a 95 % interval from which a warning is due
RISEN = 1.05  # ratio to the lowest loss above which the loss has risen
FALLING = 0.98  # ratio to the previous loss below which the loss is still falling
STRONG = 0.9  # F1 from which a class is not called weak
Warning_ = dict[str, str]  # with the keys ``what``, ``why`` and ``do``


def describe_result(record: RunRecord, classes: list[str]) -> str:
    """State the test accuracy and the majority-class baseline, or the scores of several labels."""
    if (several := record.multilabel_scores.get("test")) is not None:
        return (
            f"The test micro F1 of its labels is {percent(several.accuracy)} on "
            f"{pluralize(several.documents, 'text')}, "
            f"the macro F1 {several.macro_f1:.3f}, the mean average precision {several.mean_average_precision:.3f}."
        )
    scores = record.multiclass_scores.get("test")
    if scores is None:
        return f"The test accuracy is {percent(record.metrics['test_accuracy'])}."
    low, high = accuracy_interval(scores)
    always, share = majority(scores, training_rows(record))
    return (
        f"The test accuracy is {percent(scores.accuracy)} on {pluralize(scores.documents, 'text')} (95 % interval: "
        f"{percent(low)} to {percent(high)}). The majority-class baseline (always "
        f"“{truncate_to_width(classes[always], LABEL_CELLS)}”) has an accuracy of {percent(share)}."
    )


def describe_selection(record: RunRecord) -> str:
    """State which epoch is reported, and why."""
    if record.result is None:
        return f"The run is not finished. The last epoch so far is {record.epoch}."
    is_last = record.result["chosen_by"] == "last epoch"
    how = "is the last one; there was no validation split to choose by" if is_last else "has the best validation scores"
    stopped = f" Training stopped early: {pluralize(_planned(record), 'epoch')} were planned." * _stopped(record)
    refit = ""
    if about := record.provenance.get("refit"):
        refit = f" Then the n-gram table learnt from all {number(about['rows'])} rows, validation rows among them"
        refit += f"; validation scores are those before, when the test accuracy was {percent(about['test_accuracy'])}."
    return f"Epoch {record.epoch} of {_last_epoch(record)} {how}.{stopped}{refit}"


def _last_epoch(record: RunRecord) -> int:
    return int(record.history.epochs[-1]["epoch"] if record.history.epochs else record.epoch)


def _planned(record: RunRecord) -> int:
    return record.settings.get("training.epochs") or 0


def _stopped(record: RunRecord) -> bool:
    return record.result is not None and _last_epoch(record) < _planned(record)


def network(record: RunRecord) -> str:
    """Describe the network by its kind and size."""
    about = record.metadata["network"]
    text = config_class(about).description_template.format_map(defaultdict(lambda: "?", about))
    return f"{text}, {number(record.provenance['parameters'])} parameters" if record.provenance else text


def training(record: RunRecord) -> str:
    """Describe the training time, the hardware and the interruptions."""
    history, made = record.history, record.provenance
    where = f"; {pluralize(made['processes'], 'process', 'processes')} on {made['device']}" if made else ""
    resumed = f"; resumed from a saved state {pluralize(history.num_resumes, 'time')}" if history.num_resumes else ""
    return f"Training took {duration(history.seconds)}, without evaluation{where}{resumed}."


def training_rows(record: RunRecord) -> list[int] | None:
    """Return the number of training rows in each class, if known."""
    rows: dict[str, list[int]] = record.provenance.get("rows", {})
    return rows.get("train")


def never_predicted(record: RunRecord, scores: MulticlassScores, classes: list[str]) -> Warning_ | None:
    """Warn about classes that were never predicted, with advice that fits the run; see ``never_predicted_warning``."""
    is_done = _stopped(record) or _has_risen(*_losses(record))
    return never_predicted_warning(scores, classes, training_rows(record), trains_longer=not is_done)


def split_sizes(record: RunRecord) -> dict[str, int]:
    """Return the number of documents of each split by its name, if known."""
    if record.provenance:
        return dict(record.provenance["documents"])
    splits: dict[str, AnyScores] = {**record.multiclass_scores, **record.multilabel_scores}
    return {name: scores.documents for name, scores in splits.items()}


def reproducible(record: RunRecord) -> bool:
    """Return whether training is bit-identical with the same settings, on any number of processes."""
    build = str(record.metadata["numerics"].get("model.kernels"))
    return build in library.BUILDS or is_gpu_build(build)


def command(record: RunRecord) -> str:
    """Return the command that repeats the training, in one process if the number of processes does not matter."""
    processes = 1 if reproducible(record) else record.provenance.get("processes", 1)
    launcher = f"horovodrun -np {processes} " if processes != 1 else ""
    computed = {name: value for name, value in record.metadata["numerics"].items() if name.startswith("model.")}
    if is_gpu_build(str(computed.get("model.kernels"))):
        computed |= {"model.kernels": "native", "device": "gpu"}
    flags = "".join(f" {flag(name)} {shlex.quote(str(value))}" for name, value in computed.items())
    config = shlex.quote(f"{record.path}/config.yaml")
    return f"{launcher}python -m crepe_dist.train --config {config}{flags} --fresh"


def _losses(record: RunRecord) -> tuple[list[float], float]:
    """Return the loss on unseen texts after each epoch, of calibrated probabilities.

    Returns:
        The losses on the validation split, or on the test split if there is none; and the largest of their standard
        errors.
    """
    split = "validation" if "validation_loss" in record.metrics else "test"
    pairs = [loss_of(epoch, split) for epoch in record.history.epochs if f"{split}_loss" in epoch]
    return [loss for loss, _ in pairs], max((error for _, error in pairs), default=0.0)


def _has_risen(losses: list[float], error: float) -> bool:
    return len(losses) > 1 and losses[-1] > RISEN * min(losses) + error


def warnings(record: RunRecord, classes: list[str]) -> list[Warning_]:
    """Return warnings about the result.

    At most one of "train longer" and "train less" is recommended. The losses decide it, then the scores.
    """
    warnings: list[Warning_] = []

    def warn(what: str, why: str, do: str) -> None:
        warnings.append({"what": what, "why": why, "do": do})

    losses, error = _losses(record)
    rose = _has_risen(losses, error)
    is_done = rose or _stopped(record)
    falls = not is_done and len(losses) > 1 and losses[-1] == min(losses) and losses[-1] < FALLING * losses[-2]
    longer = f"--epochs {2 * _last_epoch(record)}"
    if (scores := record.multiclass_scores.get("test")) is not None:
        _, baseline = majority(scores, training_rows(record))
        low, high = accuracy_interval(scores)
        if low <= baseline:
            warn(
                "the model is no better than the majority-class baseline",
                f"always predicting the most frequent class has an accuracy of {percent(baseline)}, and the 95 % "
                f"interval of the model starts at {percent(low)}",
                f"{'' if is_done else f'train longer ({longer}), '}try another learning rate, and read the report of "
                "the data set",
            )
        if high - low > WIDE_INTERVAL:
            warn(
                f"the test split is small ({pluralize(scores.documents, 'document')})",
                f"the 95 % interval of the accuracy is wide: {percent(low)} to {percent(high)}",
                "hold out more documents for the test split (prepare --test), or collect more",
            )
        if missed := never_predicted(record, scores, classes):
            warnings.append(missed)
        if scores.calibration_error > LARGE_CALIBRATION_ERROR and low > baseline:
            fewer = is_overconfident(scores)
            helps = not (falls or missed) and (fewer or not is_done)
            more = f"; {'fewer' if fewer else 'more'} epochs may help" if helps else ""
            warn(
                "the probabilities are not reliable",
                describe_calibration(scores),
                f"use the ranking, not the numbers{more}",
            )
    if rose:
        best = losses.index(min(losses)) + 1
        warn(
            f"overfitting: the loss on unseen texts rose from {min(losses):.3f} after epoch {best} to {losses[-1]:.3f}",
            "the model memorises the training texts, and is too certain about unseen ones or worse on them",
            f"stop earlier (--epochs {best}, or --patience 2 with a validation split), use more data or dropout",
        )
    elif falls and record.result is not None:
        warn(
            "the loss on unseen texts was still falling when the run ended",
            f"it was {losses[-2]:.3f} after the second-last epoch and {losses[-1]:.3f} after the last",
            f"more epochs may help: {longer}",
        )
    return warnings


def basic_limits(encoding: dict[str, Any], several: bool) -> list[str]:
    """Describe what no network with this encoding (``CharEncoder.to_dict``) can do, however it was trained."""
    alphabet = PRIVATE.sub("", encoding.get("alphabet", "") + encoding.get("paired", ""))  # not the values of columns
    return [
        f"Of a text longer than {number(encoding['feature_len'])} characters, it only reads "
        f"{describe_truncation(encoding)}" + (", of which rare ones count twice." if encoding.get("paired") else "."),
        f"It knows {number(len(alphabet))} characters"
        + (", after accents are removed" if encoding["fold_accents"] else "")
        + ". It sees all others as blanks: texts in other scripts look alike to it.",
        "It gives a text each label whose probability reaches its threshold: none, one or several."
        if several
        else "It assigns one of its classes to every text, even if none of them fits, unless a threshold is given "
        "(--min-probability).",
    ]


def changed_labels(description: dict[str, Any]) -> list[str]:
    """State how many labels of which split ``prepare --corrections`` changed, given the description of a checkpoint."""
    corrected = description.get("data", {}).get("corrected", {})
    if not any(corrected.values()):
        return []
    changed = join_words(
        [f"{pluralize(count, 'label')} of its {split} split" for split, count in corrected.items() if count]
    )
    inflated = join_words([f"the {split} split" for split, count in corrected.items() if count and split != "train"])
    scores = f"; scores on {inflated} are too high if a model suggested the changes" if inflated else ""
    return [f"A list of likely label errors changed {changed} before training{scores}."]


def describe_limits(record: RunRecord, classes: list[str]) -> list[str]:
    """Describe the limits of the model for its users."""
    sentences = basic_limits(record.metadata["encoding"], "labels" in record.metadata)
    sentences += changed_labels(record.metadata)
    if (scores := record.multiclass_scores.get("test")) is not None:
        f1 = scores.f1.tolist()
        order = sorted(np.flatnonzero(scores.has_support).tolist(), key=f1.__getitem__)
        weak = [
            f"{truncate_to_width(classes[index], LABEL_CELLS)} (F1 {f1[index]:.2f})"
            for index in order[:3]
            if f1[index] < STRONG
        ]
        sentences += [*([f"It is weakest on {', '.join(weak)}."] if weak else []), describe_calibration(scores)]
    return sentences
