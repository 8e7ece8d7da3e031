"""Warnings about likely problems in training with a prepared data set."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from crepe_dist.data.alphabet import read_of_long
from crepe_dist.data.dataset import CONTRADICTIONS, UNLABELLED
from crepe_dist.data.targets import SEVERAL
from crepe_dist.preparing.checking import NO_LABEL
from crepe_dist.preparing.formats.stream import ENDS_EARLY
from crepe_dist.settings.data_options import SHORTEST
from crepe_dist.wording import counted, number, percent

FEW_ROWS = 50
SEPARATORS = "|;,"  # of labels in one cell
FEW_TESTS = 100
LEAK_ROWS = 20  # minimum size of a class for the warning that its texts contain its label
NOTABLE = 0.005  # share of the rows from which a defect is reported


def warnings_of(
    summary: dict[str, Any], label_leaks: npt.NDArray[np.float64], classes_are_named: bool, stratified: bool
) -> list[dict[str, str]]:
    warnings: list[dict[str, str]] = []
    of_class = [sum(counts) for counts in zip(*(part["classes"] for part in summary["parts"].values()))]

    def warn(what: str, why: str, do: str) -> None:
        warnings.append({"what": what, "why": why, "do": do})

    feature_len = summary["encoding"]["feature_len"]
    lengths, rows, classes = summary["lengths"], summary["rows"]["kept"], summary["classes"]
    part_rows = {part: about["rows"] for part, about in summary["parts"].items()}
    labelled = sum(part_rows.values())
    if "unlabelled" in summary:
        part_rows[UNLABELLED] = summary["unlabelled"]["rows"]
    percentiles = lengths["percentiles"]
    if lengths["cut"] > 0.5:
        warn(
            f"{percent(lengths['cut'])} of the texts are cut",
            f"they are longer than {feature_len} characters, so only {read_of_long(summary['encoding'])} are read",
            f"--feature-len {max(SHORTEST, percentiles['90'])} would keep nine texts in ten whole; time and memory "
            "grow with it",
        )
    if feature_len < SHORTEST:
        warn(
            f"documents of {feature_len} characters cannot be trained on",
            f"the network needs at least {SHORTEST}, so train will refuse this data set",
            f"prepare again with --feature-len {SHORTEST} or more",
        )
    cut = [reason for reason in summary["quarantine"]["reasons"] if reason.startswith(ENDS_EARLY)]
    if cut:
        warn(
            "a gzip file is truncated or broken",
            f"{' and '.join(cut)}; the rows after that are lost and cannot be counted",
            "find the file's name in quarantine.jsonl, get it again, and prepare again",
        )
    corrected = summary.get("corrections", {})
    if corrected.get("stale"):
        warn(
            f"{counted(corrected['stale'], 'correction')} of {corrected['file']} could not be applied",
            f"text or label are not those that were judged: the first is for {corrected['first_stale']}",
            "inspect these data again, or prepare them with the sources and flags of the data set that was inspected",
        )
    unlabelled = summary["quarantine"]["reasons"].get(NO_LABEL, 0)
    if unlabelled:
        warn(
            f"{counted(unlabelled, 'row')} without a label {'is' if unlabelled == 1 else 'are'} left out",
            f"of {number(summary['rows']['read'])} rows that were read",
            "nothing, if this is intended; --keep-unlabelled keeps them as unlabelled texts"
            + ", --empty-label keep as texts of no class" * (summary.get("labels", {}).get("kind") == SEVERAL)
            + "; otherwise fill in the labels, or name their column with --label",
        )
    if UNLABELLED in summary and "validation" not in summary["parts"]:
        warn(
            "the unlabelled texts cannot be used without a validation split",
            "it weighs the teacher that labels them, and tells whether they help",
            "prepare again with --validation 0.1",
        )
    separator, lists = _label_lists(classes) if "labels" not in summary else ("", [])
    if lists:
        warn(
            f"some labels look like lists of labels, separated by {separator!r}",
            f"{_listed([*map(repr, lists)], most=5)}: each of them is a class of its own",
            f"--labels several --label-separator {shlex.quote(separator)} makes them several labels; "
            "or keep one label per row",
        )
    train = summary["parts"]["train"]["classes"]
    all_classes = counted(len(classes), "class", "classes")
    small = [f"{name} ({count})" for name, count in zip(classes, train) if count < FEW_ROWS]
    if small:
        warn(
            f"{len(small)} of {all_classes} {'has' if len(small) == 1 else 'have'} fewer than {FEW_ROWS} training rows",
            _listed(small),
            "collect more rows, or merge these classes with others: a network learns little from so few",
        )
    test = summary["parts"].get("test", {"rows": 0, "classes": []})
    for these, others, what in (
        (train, test["classes"], "training rows and no test row"),
        (test["classes"], train, "test rows and no training row"),
    ):
        alone = [name for name, mine, other in zip(classes, these, others) if mine and not other]
        if alone:
            warn(
                f"{len(alone)} of {all_classes} {'has' if len(alone) == 1 else 'have'} {what}",
                _listed(alone),
                "remove these rows if they are not a class, or "
                + (
                    "collect more of them: there are too few for every split, even with --stratified"
                    if stratified
                    else "give every split rows of every class: --stratified"
                ),
            )
    if 0 < test["rows"] < FEW_TESTS:
        warn(
            f"the test split has {test['rows']} rows",
            "an accuracy measured on so few rows is imprecise",
            "hold out more with --test, or collect more",
        )
    if max(train) > 0.9 * sum(train):
        warn(
            f"{percent(max(train), sum(train))} of the training rows are of one class, "
            f"{classes[train.index(max(train))]}",
            "a model that always predicts this class gets a high accuracy without learning anything",
            "look at the scores per class; --max-per-class reduces the large class",
        )
    if not classes_are_named and all(_is_number(name) for name in classes):
        warn(
            "the labels look like numbers",
            "they are treated as class names; their order is not learnt",
            "nothing, if this is intended; "
            + (
                "names for the labels 1, 2, … can be given in classes.txt beside the data, one per line"
                if classes == [str(number) for number in range(1, len(classes) + 1)]
                else "names instead of numbers would make the results easier to read"
            ),
        )
        values = Counter(float(name) for name in classes)
        twice = [name for name in classes if values[float(name)] > 1]
        if twice:
            warn(
                "some labels are spellings of the same number",
                ", ".join(map(repr, twice[:10])),
                "use one spelling and prepare again: each spelling is a separate class",
            )
    alike = [f"{name!r} like {other!r}" for name, other in summary["variants"].items()]
    if alike:
        warn(
            "some labels look like variants of others: they differ in case, spaces or one letter",
            _listed(alike, "; "),
            "write a map with --propose-labels map.csv, correct it, and prepare again with --merge-labels map.csv; or "
            "nothing, if they are classes of their own",
        )
    if summary["unused"]:
        warn(
            f"{counted(len(summary['unused']), 'label')} of --merge-labels did not occur",
            _listed([*map(repr, summary["unused"])]),
            "check the spelling in the map; capitals and spaces within count",
        )
    tagged = summary["html"]
    if not tagged["stripped"] and tagged["rows"] >= NOTABLE * rows:
        warn(
            f"{percent(tagged['rows'], rows)} of the rows contain HTML tags",
            f"{counted(tagged['rows'], 'such row')}; the network reads tags as text, and they take room in its "
            f"{feature_len:,} characters",
            "--strip-html removes them, here and where texts are classified; or nothing, if they tell classes apart",
        )
    leaking = [
        f"{name} ({percent(share)})"
        for name, share, count in zip(classes, label_leaks.tolist(), of_class)
        if share > 0.5 and count >= LEAK_ROWS
    ]
    if leaking:
        warn(
            f"most texts of {counted(len(leaking), 'class', 'classes')} contain their label: will later texts, too?",
            _listed(leaking),
            "nothing, if they will, as where customers write “refund”; otherwise remove the label from these texts",
        )
    characters = summary["characters"]
    script = (
        "add training rows with such characters"
        if summary["fit"]["alphabet"]
        else "--alphabet auto makes an alphabet from the characters of these texts"
    )
    if characters["unknown"] > 0.1 * characters["total"]:
        warn(
            f"{percent(characters['unknown'], characters['total'])} of the characters are outside the alphabet",
            "the network sees each of them as blank",
            script,
        )
    blank = characters["unreadable"]
    if sum(blank.values()) >= NOTABLE * rows:
        parts = [f"{count:,} of {part_rows[part]:,} in {part}" for part, count in blank.items() if count]
        warn(
            f"{percent(sum(blank.values()), rows)} of the rows are nearly blank to the network",
            f"almost all their characters are outside the alphabet ({', '.join(parts)})",
            f"{script}; or leave these rows out"
            + ("; --mode paper reads capitals too" if summary["encoding"]["mode"] == "notebook" else ""),
        )
    letterless = sum(characters["letterless"].values())
    if letterless >= NOTABLE * rows:
        warn(
            f"{percent(letterless, rows)} of the rows have no letter",
            f"{counted(letterless, 'such row')}, such as {', '.join(map(repr, characters['letterless_examples']))}",
            "look at them; leave them out if they are placeholders or numbers without a meaning",
        )
    for pair, count in summary["duplicates"]["across"].items():
        part, other = pair.split(" in ")
        if count["near"] > 0.01 * summary["parts"][part]["rows"]:
            warn(
                f"{count['near']:,} {part} rows also occur in the {other} split",
                f"{count['exact']:,} of them are exact copies; this leakage inflates the accuracy",
                "--dedupe near leaves repeated rows out",
            )
    conflicting = summary["duplicates"]["conflicting"]
    if conflicting >= NOTABLE * labelled:
        warn(
            f"{percent(conflicting, labelled)} of the rows have the text of an earlier row, but another label",
            f"{counted(conflicting, 'such row')}: the text does not tell which one is right; --dedupe keeps the first",
            f"check how they were labelled: {CONTRADICTIONS} lists them; enter the right labels in a copy, and prepare "
            "again with --corrections COPY",
        )
    fits = max(SHORTEST, percentiles["99"])
    if feature_len > 1.5 * fits:
        warn(
            f"most of the {feature_len} characters per document are padding",
            f"99 % of the texts have at most {percentiles['99']} characters",
            f"use --feature-len auto; convolutions then take about {percent(fits, feature_len)} of the time",
        )
    return warnings


def _listed(names: Sequence[str], separator: str = ", ", most: int = 10) -> str:
    return separator.join(names[:most]) + (f"{separator.rstrip(', ')} …" if len(names) > most else "")


def _label_lists(classes: list[str]) -> tuple[str, list[str]]:
    """Find class names such as ``billing|vip``: most of their parts occur in other names, too."""
    for separator in SEPARATORS:
        parts = {name: {part.strip() for part in name.split(separator)} for name in classes}
        lists = [name for name in classes if separator in name]
        counts = Counter(part for labels in parts.values() for part in labels)
        shared = [name for name in lists if sum(counts[part] > 1 for part in parts[name]) > len(parts[name]) / 2]
        if len(shared) >= 2:
            return separator, shared
    return "", []


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
