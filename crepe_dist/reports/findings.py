"""Sentences about a run, and warnings, for the report, the terminal and exports."""

import shlex
from collections import defaultdict
from typing import TYPE_CHECKING, Any

from crepe_dist.data.char_encoder import describe_truncation
from crepe_dist.formatting import duration, number, percent, pluralize
from crepe_dist.model.backend import is_gpu_build
from crepe_dist.model.weights_io import config_class
from crepe_dist.native import library
from crepe_dist.reports.score_page import (
    LARGE_CALIBRATION_ERROR,
    accuracy_interval,
    describe_calibration,
    majority,
    never_predicted_warning,
    over_groups,
)
from crepe_dist.runs.metrics import loss_of
from crepe_dist.settings.config import flag

if TYPE_CHECKING:
    from crepe_dist.runs.record import RunRecord

WIDE_INTERVAL = 0.1  # A 95 % confidence interval of the accuracy that is wider than this causes a warning.
RISEN = 1.05  # The loss is considered risen if its ratio to the lowest loss is above this limit.
Warning_ = dict[str, str]  # Keys: ``what`` and ``why``.


def describe_selection(record: "RunRecord") -> str:
    """State which epoch is selected, and why."""
    if record.result is None:
        return f"The run is not finished. The last epoch so far is {record.epoch}."
    is_last = record.result["chosen_by"] == "last epoch"
    reason = "has the best validation scores"
    if is_last:
        reason = "is selected, because it is the last epoch and there is no validation split"
    stopped = f" Training stopped early: {pluralize(_planned(record), 'epoch')} were planned." * _stopped(record)
    refit = ""
    if details := record.provenance.get("refit"):
        refit = (
            f" After that, the n-gram table was refitted to all {number(details['rows'])} rows, including the "
            f"validation rows. The validation scores are the scores before the refit, when the test accuracy was "
            f"{percent(details['test_accuracy'])}."
        )
    return f"Epoch {record.epoch} of {_last_epoch(record)} {reason}.{stopped}{refit}"


def _last_epoch(record: "RunRecord") -> int:
    return int(record.history.epochs[-1]["epoch"] if record.history.epochs else record.epoch)


def _planned(record: "RunRecord") -> int:
    return record.settings.get("training.epochs") or 0


def _stopped(record: "RunRecord") -> bool:
    return record.result is not None and _last_epoch(record) < _planned(record)


def network(record: "RunRecord") -> str:
    """Describe the network: its kind, its size and its number of parameters."""
    settings = record.metadata["network"]
    text = config_class(settings).description_template.format_map(defaultdict(lambda: "?", settings))
    return f"{text}, {number(record.provenance['parameters'])} parameters" if record.provenance else text


def training(record: "RunRecord") -> str:
    """Describe the training time, the hardware and the interruptions."""
    history, provenance = record.history, record.provenance
    sentences = [f"Training took {duration(history.seconds)}, without evaluation."]
    if provenance:
        processes = pluralize(provenance["processes"], "process", "processes")
        sentences.append(f"It used {processes} on {provenance['device']}.")
    if history.num_resumes:
        sentences.append(f"It was resumed {pluralize(history.num_resumes, 'time')}.")
    return " ".join(sentences)


def training_rows(record: "RunRecord") -> list[int] | None:
    """Return the number of training rows of each class, or ``None`` if the numbers are unknown."""
    rows: dict[str, list[int]] = record.provenance.get("rows", {})
    return rows.get("train")


def split_sizes(record: "RunRecord") -> dict[str, int]:
    """Return a mapping from split names to numbers of documents. It is empty if the numbers are unknown."""
    if record.provenance:
        return dict(record.provenance["documents"])
    return {name: scores.documents for name, scores in record.scores.items()}


def reproducible(record: "RunRecord") -> bool:
    """Return True if repeating the training is bit-identical on any number of processes."""
    build = str(record.metadata["numerics"].get("model.kernels"))
    return build in library.BUILDS or is_gpu_build(build)


def command(record: "RunRecord") -> str:
    """Return the command that repeats the training.

    If training is bit-identical on any number of processes, the command uses one process.
    """
    processes = 1 if reproducible(record) else record.provenance.get("processes", 1)
    launcher = f"horovodrun -np {processes} " if processes != 1 else ""
    computed = {name: value for name, value in record.metadata["numerics"].items() if name.startswith("model.")}
    if is_gpu_build(str(computed.get("model.kernels"))):
        computed |= {"model.kernels": "native", "device": "gpu"}
    flags = "".join(f" {flag(name)} {shlex.quote(str(value))}" for name, value in computed.items())
    config = shlex.quote(f"{record.path}/config.yaml")
    return f"{launcher}python -m crepe_dist.train --config {config}{flags} --fresh"


def _losses(record: "RunRecord") -> tuple[list[float], float]:
    """Return the loss on unseen texts after each epoch, computed from calibrated probabilities.

    Returns:
        The losses on the validation split, or on the test split if there is no validation split; and the largest of
        their standard errors.
    """
    split = "validation" if "validation_loss" in record.metrics else "test"
    pairs = [loss_of(epoch, split) for epoch in record.history.epochs if f"{split}_loss" in epoch]
    return [loss for loss, _ in pairs], max((error for _, error in pairs), default=0.0)


def warnings(record: "RunRecord", classes: list[str]) -> list[Warning_]:
    """Return warnings about the result."""
    warnings: list[Warning_] = []

    def warn(what: str, why: str) -> None:
        warnings.append({"what": what, "why": why})

    losses, error = _losses(record)
    if (scores := record.multiclass_test_scores) is not None:
        _, baseline = majority(scores, training_rows(record))
        low, high = accuracy_interval(scores)
        if low <= baseline:
            warn(
                "the model is no better than the majority-class baseline",
                f"always predicting the most frequent class has an accuracy of {percent(baseline)}, and the 95 % "
                f"interval of the model starts at {percent(low)}",
            )
        if high - low > WIDE_INTERVAL:
            warn(
                f"the test split is small ({pluralize(scores.documents, 'document')})",
                f"the 95 % interval of the accuracy{over_groups(scores)} is wide: {percent(low)} to {percent(high)}",
            )
        if missed := never_predicted_warning(scores, classes):
            warnings.append(missed)
        if scores.calibration_error > LARGE_CALIBRATION_ERROR and low > baseline:
            warn(
                "the probabilities are not reliable",
                describe_calibration(scores),
            )
    if len(losses) > 1 and losses[-1] > RISEN * min(losses) + error:
        best = losses.index(min(losses)) + 1
        warn(
            f"overfitting: the loss on unseen texts rose from {min(losses):.3f} after epoch {best} to {losses[-1]:.3f}",
            "the model memorises the training texts, and is overconfident or less accurate on unseen texts",
        )
    return warnings


def basic_limits(encoding: dict[str, Any], is_multilabel: bool) -> list[str]:
    """Describe limitations of the model that do not depend on training.

    Args:
        encoding: Character encoding, as ``CharEncoder.to_dict`` returns it.
        is_multilabel: True for a multilabel model.
    """
    alphabet = encoding.get("alphabet", "") + encoding.get("two_id_characters", "")
    rare = " A rare character counts as two characters." if encoding.get("two_id_characters") else ""
    folded = " Accents are removed before the text is read." if encoding["fold_accents"] else ""
    return [
        f"If a text is longer than {number(encoding['feature_len'])} characters, the model only reads "
        f"{describe_truncation(encoding)}.{rare}",
        f"The alphabet of the model has {number(len(alphabet))} characters. All other characters are read as blanks, "
        f"so the model cannot distinguish texts in other scripts.{folded}",
        "The model predicts each label with a probability that reaches the label's threshold. A text can have no label "
        "or more than one label."
        if is_multilabel
        else "The model assigns one of its classes to every text, even if no class fits, unless a threshold is given "
        "(--min-probability).",
    ]


def changed_labels(description: dict[str, Any]) -> list[str]:
    """Say how many training labels were changed by ``prepare --corrections``. Return [] if there are none.

    Args:
        description: Metadata of a checkpoint.
    """
    corrected = description.get("data", {}).get("corrected", 0)
    return [f"Corrections changed {pluralize(corrected, 'training label')} before training."] if corrected else []
