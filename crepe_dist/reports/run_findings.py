"""Findings about a run: sentences for its report, and warnings."""

from __future__ import annotations

import re
import shlex
import unicodedata
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from crepe_dist.data.alphabet import STANDARD_ALPHABETS, read_of_long
from crepe_dist.model import cuda
from crepe_dist.model.parameters import shape_class
from crepe_dist.native import library
from crepe_dist.reports.score_tables import (
    LABEL_CELLS,
    LARGE_CALIBRATION_ERROR,
    calibration,
    is_overconfident,
    majority,
    unanswered,
)
from crepe_dist.reports.uncertainty import interval
from crepe_dist.settings.config import flag
from crepe_dist.settings.training_options import LEAST_VALIDATION
from crepe_dist.wording import counted, cut, duration, listed, number, percent

if TYPE_CHECKING:
    from crepe_dist.runs.checkpoint import AnyScores
    from crepe_dist.runs.run_record import RunRecord
    from crepe_dist.runs.scores import Scores

WIDE_INTERVAL = 0.1  # width of a 95 % interval from which a warning is due
RISEN = 1.05  # ratio to the lowest loss above which the loss has risen
FALLING = 0.98  # ratio to the previous loss below which the loss is still falling
TABLE_ACCURACY = "validation_table_accuracy"
AS_GOOD = 0.003  # of accuracy, by which the whole network may be better than its table and not be worth its time
SHOWN_SHARES = 8  # classes of which the share among unlabelled texts is stated
STRONG = 0.9  # F1 from which a class is not called weak
# Start of the Unicode name of a letter, with its script.
SCRIPT = re.compile(r"(?!MODIFIER)([A-Z]+) (?:SMALL |CAPITAL )?(?:LETTER|SYLLABLE|CHARACTER|UNIFIED IDEOGRAPH)\b")
ONE_LIMIT = (
    "It assigns one of its classes to every text, even if none of them fits, unless a threshold is given "
    "(--min-probability)."
)
SEVERAL_LIMIT = "It gives a text each label whose probability reaches its threshold: none, one or several."


def result(record: RunRecord, classes: list[str]) -> str:
    """State the test accuracy and the majority-class baseline, or the scores of several labels."""
    if (several := record.label_scores.get("test")) is not None:
        return (
            f"The test micro F1 of its labels is {percent(several.accuracy)} on {counted(several.documents, 'text')}, "
            f"the macro F1 {several.macro_f1:.3f}, the mean average precision {several.mean_average_precision:.3f}."
        )
    scores = record.scores.get("test")
    if scores is None:
        return f"The test accuracy is {percent(record.metrics['test_accuracy'])}."
    low, high = interval(round(scores.accuracy * scores.documents), scores.documents)
    always, share = majority(scores, classes, training_rows(record))
    return (
        f"The test accuracy is {percent(scores.accuracy)} on {counted(scores.documents, 'text')} (95 % interval: "
        f"{percent(low)} to {percent(high)}). The majority-class baseline (always "
        f"“{cut(classes[always], LABEL_CELLS)}”) has an accuracy of {percent(share)}."
    )


def choice(record: RunRecord) -> str:
    """State which epoch is reported, and why."""
    if record.result is None:
        return f"The run is not finished. The last epoch so far is {record.epoch}."
    last = _last_epoch(record)
    if record.result["chosen_by"] == "last epoch":
        how = "is the last one; there was no validation split to choose by"
    else:
        how = "was chosen on the validation split"
    stopped = f" Training stopped early: {counted(_planned(record), 'epoch')} were planned."
    return f"Epoch {record.epoch} of {last} {how}.{stopped * (_planned(record) > last)}"


def _last_epoch(record: RunRecord) -> int:
    return int(record.history.epochs[-1]["epoch"] if record.history.epochs else record.epoch)


def _planned(record: RunRecord) -> int:
    return record.settings.get("training.epochs") or 0


def kind(record: RunRecord) -> str:
    return shape_class(record.about["network"]).kind


def network(record: RunRecord) -> str:
    """Describe the network by its kind and size."""
    provenance = record.made
    text = shape_class(record.about["network"]).described.format_map(defaultdict(lambda: "?", record.about["network"]))
    if provenance:
        text += f", {number(provenance['parameters'])} parameters"
    return text


def training(record: RunRecord) -> str:
    """Describe the training time, the hardware and the interruptions."""
    history, provenance = record.history, record.made
    first = f"Training took {duration(history.seconds)}, without evaluation"
    if provenance:
        first += f"; {counted(provenance['processes'], 'process', 'processes')} on {provenance['device']}"
    sentences = [f"{first}."]
    for event, what in (
        ("resume", "It resumed from a saved state"),
        ("skipped", "It skipped a step"),
    ):
        if count := history.counts[event]:
            sentences.append(f"{what} {counted(count, 'time')}.")
    return " ".join(sentences)


def unlabelled(record: RunRecord) -> str:
    """State what the run learnt from unlabelled texts; empty if it used none."""
    figures = record.made.get("unlabelled")
    if figures is None:
        return ""
    first, student = (
        f"{percent(figures[who]['accuracy'])} of the validation texts right (loss {figures[who]['loss']:.4f})"
        for who in ("first", "student")
    )
    ranked = sorted(figures["shares"].items(), key=lambda item: -float(item[1]))
    shares = [f"“{cut(str(name), LABEL_CELLS)}” {percent(share)}" for name, share in ranked]
    rarest = f"; the rarest class is {shares[-1]}" if len(shares) > SHOWN_SHARES else ""
    teacher = {
        "network": "The first network",
        "words": "The first network and a naive Bayes classifier of words",
    }[figures["teacher"]["kind"]]
    kept = "is reported" if figures["reported"] == "student" else "is not better, so the first network is reported"
    return (
        f"A first network, trained on the labelled texts, has {first}. {teacher} labelled "
        f"{counted(figures['texts'], 'more text')}: "
        f"{listed(shares[:SHOWN_SHARES])}{rarest}. "
        f"The network that learnt from all texts has {student}; it {kept}."
    )


def training_rows(record: RunRecord) -> list[int] | None:
    """Return the number of training rows in each class, if known."""
    rows: dict[str, list[int]] = record.made.get("rows", {})
    return rows.get("train")


def never_predicted(record: RunRecord, scores: Scores, classes: list[str]) -> dict[str, str] | None:
    """Warn about classes that were never predicted, with advice that fits the run; see ``unanswered``."""
    return unanswered(scores, classes, training_rows(record), trains_longer=not Curve.of(record).is_done)


def split_sizes(record: RunRecord) -> list[tuple[str, int]]:
    """Return the name and the number of documents of each split, if known."""
    if record.made:
        return list(record.made["documents"].items())
    splits: dict[str, AnyScores] = {**record.scores, **record.label_scores}
    return [(name, scores.documents) for name, scores in splits.items()]


def reproducible(record: RunRecord) -> bool:
    """Return whether a training with the same settings gives the same bits, on any number of processes."""
    build = str(record.about["computed"].get("model.kernels"))
    return build in library.BUILDS or cuda.is_build(build)


def command(record: RunRecord) -> str:
    """Return the command that repeats the training: in one process, where their number does not matter."""
    processes = 1 if reproducible(record) else record.made.get("processes", 1)
    launcher = f"horovodrun -np {processes} " if processes != 1 else ""
    computed = {name: value for name, value in record.about["computed"].items() if name.startswith("model.")}
    if cuda.is_build(str(computed.get("model.kernels"))):
        computed |= {"model.kernels": "own", "device": "gpu"}
    flags = "".join(f" {flag(name)} {shlex.quote(str(value))}" for name, value in computed.items())
    config = shlex.quote(f"{record.path}/config.yaml")
    return f"{launcher}python -m crepe_dist.train --config {config}{flags} --fresh"


@dataclass(frozen=True)
class Curve:
    """Loss on unseen texts by epoch: on the validation split, or on the test split if there is none.

    Attributes:
        losses: loss after each of them, of calibrated probabilities if a temperature was fitted.
        chance: difference of the last loss from the lowest that is not worth a word.
        is_stopped: true if the run stopped early, because more epochs did not help.
    """

    split: str
    epochs: list[int]
    losses: list[float]
    chance: float
    is_stopped: bool

    @classmethod
    def of(cls, record: RunRecord) -> Curve:
        split = "validation" if "validation_loss" in record.metrics else "test"
        scored = [epoch for epoch in record.history.epochs if f"{split}_loss" in epoch]
        key = f"{split}_fitted_loss" if all(f"{split}_fitted_loss" in epoch for epoch in scored) else f"{split}_loss"
        chance = max((float(epoch.get(f"{split}_fitted_loss_error", 0.0)) for epoch in scored), default=0.0)
        is_stopped = record.result is not None and _last_epoch(record) < _planned(record)
        return cls(split, [epoch["epoch"] for epoch in scored], [epoch[key] for epoch in scored], chance, is_stopped)

    @property
    def lowest(self) -> int:
        """Index of the lowest loss."""
        return self.losses.index(min(self.losses))

    @property
    def rose(self) -> bool:
        return len(self.losses) > 1 and self.losses[-1] > RISEN * min(self.losses) + self.chance

    @property
    def is_done(self) -> bool:
        """True if more epochs would not help."""
        return self.rose or self.is_stopped

    @property
    def falls(self) -> bool:
        """True if the last loss is the lowest, and clearly lower than the one before, without an early stop."""
        last = len(self.losses) - 1
        return not self.is_stopped and last > 0 and self.lowest == last and self.losses[-1] < FALLING * self.losses[-2]


def _more_epochs(record: RunRecord, curve: Curve) -> int:
    """Return the epochs to train next: twice as many, and what the network usually needs if it does not learn yet."""
    trained = [epoch["epoch"] for epoch in record.history.epochs] or [record.epoch]
    rows, batch = dict(split_sizes(record)).get("train", 0), record.settings.get("data.batch_size")
    more = trained[-1] + 1 + len(trained)
    if curve.falls or not rows or not batch:
        return more
    return max(more, shape_class(record.about["network"]).epochs_needed(rows, batch))


def warnings(record: RunRecord, classes: list[str]) -> list[dict[str, str]]:
    """Return warnings about the result, each with the keys ``what``, ``why`` and ``do``, and ``good`` for good news.

    At most one of "train longer" and "train less" is recommended. The curve decides it, then the scores.
    """
    warnings: list[dict[str, str]] = []

    def warn(what: str, why: str, do: str, **more: str) -> None:
        warnings.append({"what": what, "why": why, "do": do, **more})

    scores, curve = record.scores.get("test"), Curve.of(record)
    longer = f" (--epochs {_more_epochs(record, curve)})" if record.result is not None else ""
    if scores is not None:
        _, baseline = majority(scores, classes, training_rows(record))
        low, high = interval(round(scores.accuracy * scores.documents), scores.documents)
        at_baseline = low <= baseline
        if at_baseline:
            warn(
                "the model is no better than the majority-class baseline",
                f"always predicting the most frequent class has an accuracy of {percent(baseline)}, and the 95 % "
                f"interval of the model starts at {percent(low)}",
                ("" if curve.is_done else f"train longer{longer}, ")
                + "try another learning rate, and read the report of the data set",
            )
        if high - low > WIDE_INTERVAL:
            warn(
                f"the test split is small ({counted(scores.documents, 'document')})",
                f"the 95 % interval of the accuracy is wide: {percent(low)} to {percent(high)}",
                "hold out more documents for the test split (prepare --test), or collect more",
            )
        missed = never_predicted(record, scores, classes)
        if missed:
            warnings.append(missed)
        if scores.calibration_error > LARGE_CALIBRATION_ERROR and not at_baseline:
            if is_overconfident(scores):
                help_ = "; more data helps" if curve.falls or missed else "; more data or fewer epochs help"
            else:
                help_ = "" if curve.is_done else "; more epochs help"
            warn("the probabilities are not reliable", calibration(scores),
                 f"use the ranking of the classes, not the numbers{help_}")  # fmt: skip
    if curve.rose:
        first, last = curve.losses[curve.lowest], curve.losses[-1]
        best = curve.epochs[curve.lowest]
        calibrated = " of calibrated probabilities" if curve.chance else ""
        warn(
            f"overfitting: the {curve.split} loss{calibrated} rose from {first:.3f} after epoch {best} to {last:.3f}",
            "the model memorises the training texts, and is too certain about unseen ones or worse on them",
            f"stop earlier (--epochs {best}, or --patience 2 with a validation split), use "
            + ("more data" if kind(record) == "ngrams" else "more dropout or more data"),
        )
    elif curve.falls and record.result is not None:
        warn(
            f"the {curve.split} loss was still falling when the run ended",
            f"it was {curve.losses[-2]:.3f} after the second-last epoch and {curve.losses[-1]:.3f} after the last",
            f"more epochs may help: --epochs {_more_epochs(record, curve)}",
        )
    if is_table_enough(record):
        alone, both = (percent(record.metrics[name]) for name in (TABLE_ACCURACY, "validation_accuracy"))
        warn(
            "the n-gram table alone is as good on these data",
            f"it classifies {alone} of the validation split correctly by itself, and {both} together with the "
            "convolutions, which take most of the time",
            "--model ngrams trains the table alone",
            good="yes",
        )
    if record.history.counts["skipped"]:
        warn(
            f"{counted(record.history.counts['skipped'], 'step was', 'steps were')} skipped",
            "the loss or a gradient was not finite",
            "lower --learning-rate or set --clip-norm",
        )
    return warnings


def is_table_enough(record: RunRecord) -> bool:
    """Return whether Crepe's n-gram table alone is as good on the validation split, or less than ``AS_GOOD`` worse."""
    alone, documents = record.metrics.get(TABLE_ACCURACY), dict(split_sizes(record)).get("validation", 0)
    if alone is None or documents < LEAST_VALIDATION:
        return False
    return alone >= record.metrics["validation_accuracy"] - AS_GOOD


def _known(alphabet: str) -> str:
    if alphabet in STANDARD_ALPHABETS.values():
        return "digits, punctuation and Latin letters without accents"
    return "those of the training texts, without very rare ones"


def _scripts(alphabet: str) -> list[str]:
    """Return the names of the scripts of an alphabet's letters."""
    names = {match[1] for letter in alphabet if (match := SCRIPT.match(unicodedata.name(letter, "")))}
    return sorted("Chinese" if name == "CJK" else name.capitalize() for name in names)


def basic_limits(encoding: dict[str, Any], several: bool) -> list[str]:
    """Describe what no network with this encoding (``Encoding.to_dict``) can do, however it was trained."""
    alphabet = encoding.get("alphabet", "") + encoding.get("paired", "")
    scripts = _scripts(alphabet)
    return [
        f"Of a text longer than {number(encoding['feature_len'])} characters, it only reads {read_of_long(encoding)}"
        + (", of which rare ones count twice." if encoding.get("paired") else "."),
        f"It knows {counted(len(alphabet), 'character')}: {_known(alphabet)}"
        + (" (accents are removed first)" if encoding["fold_accents"] else "")
        + ". It sees all others as blanks"
        + (f", so texts in other scripts than {listed(scripts)} look alike to it." if scripts else "."),
        SEVERAL_LIMIT if several else ONE_LIMIT,
    ]


def limits(record: RunRecord, classes: list[str]) -> list[str]:
    """Describe the limits of the model for its users."""
    sentences = basic_limits(record.about["encoding"], "labels" in record.about)
    scores = record.scores.get("test")
    if scores is not None:
        f1 = scores.f1.tolist()
        order = sorted(np.flatnonzero(scores.tested).tolist(), key=f1.__getitem__)
        weak = [f"{cut(classes[index], LABEL_CELLS)} (F1 {f1[index]:.2f})" for index in order[:3] if f1[index] < STRONG]
        sentences += [*([f"It is weakest on {listed(weak)}."] if weak else []), calibration(scores)]
    return sentences
