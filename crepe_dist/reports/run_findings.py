"""What a run came to, in sentences, and what about it deserves a second look."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Any

from crepe_dist.data.alphabet import STANDARD_ALPHABETS
from crepe_dist.model.ngrams import NGramShape
from crepe_dist.model.parameters import shape_class
from crepe_dist.reports.score_tables import LABEL, SURE, calibration, headline, majority, unanswered
from crepe_dist.reports.uncertainty import interval
from crepe_dist.wording import counted, cut, listed, number, percent

if TYPE_CHECKING:
    from crepe_dist.runs.run_record import RunRecord

WIDE = 0.1  # of an interval that says little
WORSE = 1.05  # times its smallest value, and the loss has risen
MORE = 0.98  # times the value before, and the loss still falls


def result(record: RunRecord, classes: list[str]) -> str:
    """The accuracy, and what it must be compared with."""
    scores = record.scores.get("test")
    first = headline(float(record.metrics["test_accuracy"]), scores.documents if scores else 0)
    if scores is None:
        return first
    always, share = majority(scores, classes, training_rows(record))
    name = cut(classes[always], LABEL)
    return f"{first} Always answering “{name}”, the most frequent class, would be right in {percent(share)}."


def choice(record: RunRecord) -> str:
    """Which epoch is reported, and why that one."""
    if record.result is None:
        return f"The run is not finished. This is the last epoch so far, number {record.epoch} (they count from 0)."
    epochs = counted(len(record.history.epochs), "epoch") if record.history.epochs else "the run"
    if record.result["chosen_by"] == "last epoch":
        why = "the last one, since the data have no validation part to choose by"
    else:
        why = "the best on the validation part; the test part had no say in it"
    return f"This is epoch {record.epoch} of {epochs} (they count from 0): {why}."


def is_of_ngrams(record: RunRecord) -> bool:
    return shape_class(record.about["network"]) is NGramShape


def network(record: RunRecord) -> str:
    about, made = record.about["network"], record.made
    if is_of_ngrams(record):
        says = f"character n-grams up to {about.get('longest', '?')} wide, {about.get('buckets', '?')} buckets"
    else:
        says = f"convolutions, {about.get('filters', '?')} filters and {about.get('units', '?')} units"
    if made:
        says += f", {number(made['parameters'])} parameters"
    return says


def training(record: RunRecord) -> str:
    """How long it took, on what, and what came between."""
    history, made = record.history, record.made
    says = [f"Training took {duration(history.seconds)}, scoring not counted"]
    if made:
        says[0] += f"; {counted(made['processes'], 'process', 'processes')} on {made['device']}"
    says[0] += "."
    for event, one, many in (
        ("resume", "It went on once from a saved state", "It went on {} times from a saved state"),
        ("regroup", "The group of processes changed once", "The group of processes changed {} times"),
        ("skipped", "One step was left out", "{} steps were left out"),
    ):
        count = history.counts[event]
        if count:
            says.append((one if count == 1 else many.format(number(count))) + ".")
    return " ".join(says)


def duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"


def training_rows(record: RunRecord) -> list[int] | None:
    """Training rows of each class, if known."""
    rows: dict[str, list[int]] = record.made.get("rows", {})
    return rows.get("train")


def part_sizes(record: RunRecord) -> list[tuple[str, int]]:
    """Name and documents of each part, if known."""
    if record.made:
        return [(name, sum(counts)) for name, counts in record.made["rows"].items()]
    return [(name, scores.documents) for name, scores in record.scores.items()]


def command(record: RunRecord) -> str:
    """What trains it again."""
    processes = record.made.get("processes", 1)
    launcher = f"horovodrun -np {processes} " if processes != 1 else ""
    return f"{launcher}python -m crepe_dist.train --config {shlex.quote(f'{record.path}/config.yaml')} --fresh"


def warnings(record: RunRecord, classes: list[str]) -> list[dict[str, str]]:
    """What stands out, why it matters and what to do about it."""
    found: list[dict[str, str]] = []

    def warn(what: str, why: str, do: str) -> None:
        found.append({"what": what, "why": why, "do": do})

    scores = record.scores.get("test")
    if scores is not None:
        _, always = majority(scores, classes, training_rows(record))
        low, high = interval(round(scores.accuracy * scores.documents), scores.documents)
        if low <= always:
            warn(
                "it is no better than always answering the most frequent class",
                f"that would be right in {percent(always)}, and the interval begins at {percent(low)}",
                "train longer, try another learning rate, look at the data's report",
            )
        if high - low > WIDE:
            warn(
                f"the test part is small ({counted(scores.documents, 'document')})",
                f"by chance alone the accuracy could be anything from {percent(low)} to {percent(high)}",
                "hold more back for testing (prepare --test), or gather more",
            )
        if missed := unanswered(scores, classes):
            found.append(missed)
        if scores.calibration_error > SURE:
            warn("its probabilities cannot be taken at their word", calibration(scores),
                 "use the order of the classes, not the numbers; more data or fewer epochs help")  # fmt: skip
    _curves(record, warn)
    if record.history.counts["skipped"]:
        warn(
            f"{counted(record.history.counts['skipped'], 'step was', 'steps were')} left out",
            "loss or gradient were not finite",
            "lower optimizer.learning_rate or set optimizer.clip_norm",
        )
    return found


def _curves(record: RunRecord, warn: Any) -> None:
    part = "validation" if "validation_loss" in record.metrics else "test"
    losses = [epoch[f"{part}_loss"] for epoch in record.history.epochs if f"{part}_loss" in epoch]
    if len(losses) < 2:
        return
    lowest = losses.index(min(losses))
    if losses[-1] > WORSE * losses[lowest] and lowest < len(losses) - 1:
        warn(
            f"the {part} loss rose from {losses[lowest]:.3f} after epoch {lowest} to {losses[-1]:.3f}",
            "it learns the training texts by heart (overfitting) and gets worse on texts that it has not seen",
            f"stop earlier (--training.epochs {lowest + 1}, or --training.patience 2 with a validation part), "
            + ("more data" if is_of_ngrams(record) else "more dropout, more data"),
        )
    elif lowest == len(losses) - 1 and losses[-1] < MORE * losses[-2]:
        warn(
            f"the {part} loss was still falling when the run ended",
            f"{losses[-2]:.3f} after the last epoch but one, {losses[-1]:.3f} after the last",
            f"more epochs may help: --training.epochs {2 * (record.epoch + 1)}",
        )


def _known(encoding: dict[str, Any]) -> str:
    if encoding.get("alphabet") in STANDARD_ALPHABETS.values():
        return "digits, punctuation and Latin letters without accents"
    return "those that were frequent in the texts that it learnt from"


def reach(encoding: dict[str, Any]) -> list[str]:
    """What a network with this encoding (``Encoding.to_dict``) cannot do, however it was trained."""
    length, end = encoding["feature_len"], "first" if encoding["mode"] == "notebook" else "last"
    return [
        f"It reads {number(length)} characters of a text, the {end} ones; of a longer text the rest is not seen.",
        f"It knows {counted(len(encoding.get('alphabet', '')), 'character')}: {_known(encoding)}"
        + (" (accents are taken off first)" if encoding["fold_accents"] else "")
        + ". All others are blanks to it, so texts in other scripts cannot be told apart.",
        "It has one answer for every text, also for one that is of none of its classes.",
    ]


def limits(record: RunRecord, classes: list[str]) -> list[str]:
    """What the network cannot do, for those who use it."""
    says = reach(record.about["encoding"])
    scores = record.scores.get("test")
    if scores is not None:
        f1 = scores.f1.tolist()
        order = sorted((index for index in range(len(classes)) if scores.confusion[index].any()), key=f1.__getitem__)
        weak = [f"{cut(classes[index], LABEL)} (F1 {f1[index]:.2f})" for index in order[:3]]
        says += [f"It is weakest on {listed(weak)}.", calibration(scores)]
    return says
