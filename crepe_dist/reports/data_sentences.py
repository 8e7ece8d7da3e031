"""Sentences about a data set, shared by its HTML page and its terminal report.

Every function takes the summary made by ``python -m crepe_dist.prepare``, after ``wording.clean``.
"""

from __future__ import annotations

import math
from typing import Any

from crepe_dist.data.alphabet import read_of_long
from crepe_dist.data.targets import SEVERAL, SOFT
from crepe_dist.settings.data_options import LONGEST_FITTED, SHORTEST, WHOLE
from crepe_dist.wording import counted, cut, listed, number, percent

SPLITS = ("train", "validation", "test")
# Reasons for removing rows, in order of application: key, name, end of a sentence about one row, and about several.
LOSSES = (
    ("bad", "unusable", "could not be used", "could not be used"),
    ("duplicates", "duplicates removed", "was removed as a duplicate", "were removed as duplicates"),
    ("sampled_out", "left out by sampling", "was left out by sampling", "were left out by sampling"),
)
LABEL_CELLS = 60  # width of a class name in a sentence

Summary = dict[str, Any]


def splits(summary: Summary) -> list[str]:
    return [split for split in SPLITS if split in summary["parts"]]


def overview(summary: Summary) -> str:
    classes = counted(len(summary["classes"]), "class", "classes")
    shares = [f"{number(summary['parts'][split]['rows'])} {split}" for split in splits(summary)]
    missing = "" if "test" in summary["parts"] else " There is no test split."
    return f"{counted(summary['rows']['kept'], 'document')} in {classes}: {listed(shares)}.{missing}"


def flow(summary: Summary) -> str:
    rows = summary["rows"]
    lost = [counted(rows[key], one, many) for key, _, one, many in LOSSES if rows[key]]
    rest = f"{listed(lost)}; {counted(rows['kept'], 'is', 'are')} kept." if lost else "all are kept."
    return f"{counted(rows['read'], 'row was', 'rows were')} read; {rest}{_corrections(summary)}"


def _corrections(summary: Summary) -> str:
    """Describe what corrections did; empty if there were none."""
    found = summary.get("corrections")
    if found is None:
        return ""
    others = (("kept", "kept"), ("already", "had it already"), ("stale", "not applied: another text or label"))
    more = [f"{number(found[key])} {words}" for key, words in others if found[key]]
    rest = f" ({', '.join(more)})" if more else ""
    return f" {counted(found['applied'], 'label was', 'labels were')} corrected by {found['file']}{rest}."


def totals(summary: Summary) -> list[int]:
    """Count the rows of each class over all splits."""
    counts = [split["classes"] for split in summary["parts"].values()]
    return [sum(each) for each in zip(*counts)] if counts else [0] * len(summary["classes"])


def shown_classes(summary: Summary, most: int) -> list[int]:
    """Return the indices of the classes to show: all in order, or only the ``most`` largest, largest first."""
    count = totals(summary)
    if len(count) <= most:
        return list(range(len(count)))
    return sorted(range(len(count)), key=lambda index: (-count[index], index))[:most]


def all_labels(summary: Summary) -> int:
    """Return the number of which the classes' shares are: the rows, which may have several labels each."""
    return int(summary["rows"]["kept"]) if "labels" in summary else sum(totals(summary))


def labels(summary: Summary) -> str:
    """Describe how many labels the rows have; empty if each has one class."""
    about = summary.get("labels")
    if about is None:
        return ""
    if about["kind"] == SOFT:
        return f"Rows have soft labels: shares of at most {counted(about['most'], 'class', 'classes')}."
    without = f"; {counted(about['none'], 'row has', 'rows have')} none" if about["none"] else ""
    most = counted(about["most"], "label")
    return f"Rows have several labels: {about['mean']:.1f} on average, at most {most}{without}."


def baseline(summary: Summary) -> str:
    """Describe the accuracy of the majority-class baseline; empty if it cannot be computed."""
    if summary.get("labels", {}).get("kind") == SEVERAL:
        return ""
    trained = summary["parts"].get("train") or next(iter(summary["parts"].values()))
    scored = next((split for split in ("test", "validation", "train") if split in summary["parts"]), "")
    if not scored or not sum(trained["classes"]) or not summary["parts"][scored]["rows"]:
        return ""
    majority = trained["classes"].index(max(trained["classes"]))
    split = summary["parts"][scored]
    share = percent(split["classes"][majority], split["rows"])
    return f"The majority-class baseline (always {_named(summary, majority)}) has a {scored} accuracy of {share}."


def balance(summary: Summary) -> str:
    """Compare the largest and the smallest class of the train split."""
    if "train" not in summary["parts"]:
        return ""
    counts = summary["parts"]["train"]["classes"]
    most, fewest = counts.index(max(counts)), counts.index(min(counts))
    if counts[most] == counts[fewest]:
        return f"Each class has {counted(counts[most], 'training row')}."
    largest, smallest = _named(summary, most), _named(summary, fewest)
    empty = counts.count(0)
    if empty > 1:
        least = f"{number(empty)} classes have no training rows, {smallest} among them."
    elif empty:
        least = f"{smallest} has no training rows."
    else:
        least = f"the smallest is {smallest} ({number(counts[fewest])})."
    return f"The largest class is {largest} ({counted(counts[most], 'training row')}); {least}"


def _named(summary: Summary, index: int) -> str:
    return cut(summary["classes"][index], LABEL_CELLS)


def lengths(summary: Summary) -> str:
    """Describe the distribution of the text lengths."""
    values = summary["lengths"]["percentiles"]
    clauses = []
    if "50" in values:
        clauses.append(f"half of the texts have up to {counted(values['50'], 'character')}")
    clauses += [f"{share} % up to {number(values[share])}" for share in ("90", "95", "99") if share in values]
    if "100" in values:
        clauses.append(f"the longest has {number(values['100'])}")
    sentence = ", ".join(clauses) or f"the mean is {number(summary['lengths']['mean'])} characters"
    twice = " Here and below, rare characters count twice." if summary["fit"].get("rare") else ""
    return f"{sentence[0].upper()}{sentence[1:]}.{twice}"


def cutting(summary: Summary) -> str:
    """Describe how many texts are longer than ``feature_len``."""
    length = number(summary["encoding"]["feature_len"])
    share = summary["lengths"]["cut"]
    if not share:
        return f"No text is longer than feature_len ({length} characters), so nothing is cut off.{_chosen(summary)}"
    count = number(round(share * summary["rows"]["kept"]))
    return (
        f"{percent(share)} ({count}) are longer than feature_len ({length} characters) and lose their "
        f"{summary['encoding']['cut']}.{_chosen(summary)}"
    )


def _chosen(summary: Summary) -> str:
    """Explain how ``feature_len`` was chosen, unless it was given."""
    if not summary["fit"]["length"]:
        return ""
    length = summary["encoding"]["feature_len"]
    if length == LONGEST_FITTED:
        return " This is the largest feature_len that is chosen automatically; set --feature-len for more."
    return f" It was chosen so that {WHOLE} % of the training texts fit."


def fitting(summary: Summary) -> str:
    """List values of ``feature_len`` with the shares of texts that fit into them."""
    values = summary["lengths"]["percentiles"]
    needed = {share: math.ceil(values[share]) for share in ("90", "95", "99") if share in values}
    if not needed:
        return ""
    fits = [f"{number(length)} fits {share} %" for share, length in needed.items()]
    fits[0] += " of the texts"
    least = f" The network needs at least {SHORTEST}." if min(needed.values()) < SHORTEST else ""
    return f"A feature_len of {listed(fits)}. Time and memory grow with it.{least}"


def characters(summary: Summary) -> str:
    """Describe how many characters are outside the alphabet, and how many texts have no letter."""
    found = summary["characters"]
    if not found["unknown"]:
        return f"All {counted(found['total'], 'character')} are in the alphabet.{_letterless(summary)}"
    share = percent(found["unknown"], found["total"])
    return (
        f"{share} of the characters ({number(found['unknown'])} of {number(found['total'])}) are outside the alphabet; "
        f"the network sees blanks instead.{_unreadable(summary)}{_letterless(summary)}"
    )


def _unreadable(summary: Summary) -> str:
    found = summary["characters"]["unreadable"]
    rows = counted(sum(found.values()), "row consists", "rows consist")
    return f" {rows} almost entirely of such characters: {_by_split(summary, found)}." if any(found.values()) else ""


def _letterless(summary: Summary) -> str:
    found = summary["characters"].get("letterless", {})  # older versions did not count them
    rows = counted(sum(found.values()), "row has", "rows have")
    return f" {rows} no letter: {_by_split(summary, found)}." if any(found.values()) else ""


def _by_split(summary: Summary, counts: dict[str, int]) -> str:
    return listed([f"{number(counts[split])} in {split}" for split in splits(summary) if counts.get(split)])


def duplicates(summary: Summary) -> list[str]:
    """Describe the duplicates over all splits."""
    found = summary["duplicates"]
    if not found["near"] and not found["exact"]:
        return ["No text occurs twice."]
    repeat = counted(found["near"], "row repeats", "rows repeat")
    exact = (
        counted(found["exact"], "is an exact copy", "are exact copies") if found["exact"] else "none is an exact copy"
    )
    sentences = [f"{repeat} an earlier row up to case, spaces and punctuation; {exact}."]
    if found["conflicting"]:
        sentences.append(
            f"{counted(found['conflicting'], 'repeats', 'repeat')} a row of another class: one of the two labels is "
            "wrong, or both are right."
        )
    removed = found["removed"]
    sentences.append(f"{counted(removed, 'was', 'were')} removed." if removed else "None was removed.")
    return sentences


def overlaps(summary: Summary) -> list[str]:
    """Describe the overlap between each pair of splits."""
    sentences = []
    for name, found in summary["duplicates"]["across"].items():
        inside, _, other = name.partition(" in ")
        rows = summary["parts"].get(inside, {}).get("rows", 0)
        if not found["near"]:
            sentences.append(f"No {inside} text also occurs in {other}.")
            continue
        share = f" ({percent(found['near'], rows)})" if rows else ""
        occur = "occurs" if found["near"] == 1 else "occur"
        exact = number(found["exact"]) if found["exact"] else "none"
        sentences.append(
            f"{counted(found['near'], f'{inside} text')}{share} also {occur} in {other}, {exact} as an exact copy."
        )
    return sentences


def encoding(summary: Summary) -> list[str]:
    """Describe how texts are encoded."""
    options = summary["encoding"]
    modes = {
        "paper": "Upper case is read as lower case, and line breaks as spaces; texts are read in reverse.",
        "full": "Upper and lower case are distinct, line breaks are read as spaces; texts are read in reverse.",
        "notebook": "Upper case and line breaks are unknown; texts are read in order.",
    }
    cut = f"Of a text longer than {number(options['feature_len'])} characters, {read_of_long(options)} are read."
    accents = (
        "é is read as e, and ß as ss."
        if options["fold_accents"]
        else "Accented letters are read if the alphabet has them."
    )
    own = []
    if summary["fit"]["alphabet"]:
        rare = summary["fit"].get("rare", 0)  # earlier versions did not count them
        pairs = f", of which {number(rare)} rare ones are read as two codes each" if rare else ""
        own = [
            "The alphabet was built from the training texts: "
            f"{counted(len(options['alphabet']) + rare, 'character')}{pairs}; "
            "--alphabet usual uses the mode's own alphabet instead."
        ]
    tagged = summary.get("html", {"rows": 0, "stripped": False})
    if tagged["stripped"]:
        own.append(f"HTML tags were removed from {counted(tagged['rows'], 'row')}, as predict will do with all texts.")
    return [modes[options["mode"]], cut, accents, *own]


def warnings(summary: dict[str, Any] | None) -> list[dict[str, str]]:
    """Return the warnings that ``prepare`` gave, for pages of other subjects; none if the summary is malformed."""
    found = (summary or {}).get("warnings")
    names = ("what", "why", "do")
    return [
        {**each, "what": f"data: {each['what']}"}
        for each in (found if isinstance(found, list) else [])
        if isinstance(each, dict) and all(isinstance(each.get(name), str) for name in names)
    ]
