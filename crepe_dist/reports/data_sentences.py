"""What a data set's summary says, in sentences; those of the page and of the terminal are the same.

Every function takes the summary as `python -m crepe_dist.prepare` makes it, with its texts made visible.
"""

from __future__ import annotations

import math
from typing import Any

from crepe_dist.settings.data_options import LONGEST_FITTED, SHORTEST, WHOLE
from crepe_dist.wording import counted, cut, listed, number, percent

PARTS = ("train", "validation", "test")
PURPOSES = {"train": "to learn from", "validation": "to choose the best epoch by", "test": "to test on"}
# What happened to the rows on their way, in this order: key, name, and the rest of a sentence about one and about many.
LOSSES = (
    ("bad", "not usable", "could not be used", "could not be used"),
    ("duplicates", "duplicates removed", "was removed as a duplicate", "were removed as duplicates"),
    ("sampled_out", "left out by sampling", "was left out by sampling", "were left out by sampling"),
)
LABEL = 60  # cells of a class name in a sentence

Summary = dict[str, Any]


def parts(summary: Summary) -> list[str]:
    return [part for part in PARTS if part in summary["parts"]]


def overview(summary: Summary) -> str:
    classes = counted(len(summary["classes"]), "class", "classes")
    shares = [f"{number(summary['parts'][part]['rows'])} {PURPOSES[part]}" for part in parts(summary)]
    missing = "" if "test" in summary["parts"] else " Nothing is held back to test on."
    return f"{counted(summary['rows']['kept'], 'document')} in {classes}: {listed(shares)}.{missing}"


def flow(summary: Summary) -> str:
    rows = summary["rows"]
    lost = [counted(rows[key], one, many) for key, _, one, many in LOSSES if rows[key]]
    rest = f"{listed(lost)}; {counted(rows['kept'], 'is', 'are')} kept." if lost else "all are kept."
    return f"{counted(rows['read'], 'row was', 'rows were')} read; {rest}"


def totals(summary: Summary) -> list[int]:
    """Rows of each class over all parts."""
    counts = [part["classes"] for part in summary["parts"].values()]
    return [sum(each) for each in zip(*counts)] if counts else [0] * len(summary["classes"])


def shown_classes(summary: Summary, most: int) -> list[int]:
    """Indices of the classes to show: all in their order, or the ``most`` frequent ones, the largest first."""
    count = totals(summary)
    if len(count) <= most:
        return list(range(len(count)))
    return sorted(range(len(count)), key=lambda index: (-count[index], index))[:most]


def baseline(summary: Summary) -> str:
    """What a model reaches that has learnt nothing but which class is the most frequent."""
    learnt = summary["parts"].get("train") or next(iter(summary["parts"].values()))
    judged = next((part for part in ("test", "validation", "train") if part in summary["parts"]), "")
    if not judged or not sum(learnt["classes"]) or not summary["parts"][judged]["rows"]:
        return ""
    always = learnt["classes"].index(max(learnt["classes"]))
    part = summary["parts"][judged]
    share = percent(part["classes"][always], part["rows"])
    name = "training" if judged == "train" else judged
    return f"A model that always says {_named(summary, always)} is right in {share} of the {name} rows."


def balance(summary: Summary) -> str:
    """How much there is to learn from in each class."""
    if "train" not in summary["parts"]:
        return ""
    counts = summary["parts"]["train"]["classes"]
    most, fewest = counts.index(max(counts)), counts.index(min(counts))
    if counts[most] == counts[fewest]:
        return f"Each class has {counted(counts[most], 'row')} to learn from."
    largest, smallest = _named(summary, most), _named(summary, fewest)
    empty = counts.count(0)
    if empty > 1:
        least = f"{number(empty)} classes have nothing to learn from, {smallest} among them."
    elif empty:
        least = f"there is nothing to learn {smallest} from."
    else:
        least = f"the smallest is {smallest} ({counted(counts[fewest], 'row')})."
    return f"The largest class to learn from is {largest} ({counted(counts[most], 'row')}); {least}"


def _named(summary: Summary, index: int) -> str:
    return cut(summary["classes"][index], LABEL)


def lost_end(summary: Summary) -> str:
    return "end" if summary["encoding"]["mode"] == "notebook" else "beginning"


def lengths(summary: Summary) -> str:
    values = summary["lengths"]["percentiles"]
    says = []
    if "50" in values:
        says.append(f"half of the texts have up to {counted(values['50'], 'character')}")
    says += [f"{share} % up to {number(values[share])}" for share in ("90", "95", "99") if share in values]
    if "100" in values:
        says.append(f"the longest has {number(values['100'])}")
    sentence = ", ".join(says) or f"the mean is {number(summary['lengths']['mean'])} characters"
    return f"{sentence[0].upper()}{sentence[1:]}."


def cutting(summary: Summary) -> str:
    length = number(summary["encoding"]["feature_len"])
    share = summary["lengths"]["cut"]
    if not share:
        return f"None is longer than feature_len, {length} characters: nothing is cut.{_chosen(summary)}"
    count = number(round(share * summary["rows"]["kept"]))
    return (
        f"{percent(share)} ({count}) are longer than feature_len, {length} characters, and lose their "
        f"{lost_end(summary)}.{_chosen(summary)}"
    )


def _chosen(summary: Summary) -> str:
    """How feature_len came to be, if nobody gave it."""
    if not summary["fit"]["length"]:
        return ""
    length = summary["encoding"]["feature_len"]
    if length == LONGEST_FITTED:
        return " That is the largest feature_len that is chosen for texts as long; --feature-len takes more."
    return f" It was chosen so that {WHOLE} % of the training texts are read whole."


def fitting(summary: Summary) -> str:
    """The feature_len that most texts fit."""
    values = summary["lengths"]["percentiles"]
    needed = {share: math.ceil(values[share]) for share in ("90", "95", "99") if share in values}
    if not needed:
        return ""
    says = [f"{number(length)} holds {share} %" for share, length in needed.items()]
    says[0] += " of the texts whole"
    least = f" The network needs at least {SHORTEST}." if min(needed.values()) < SHORTEST else ""
    return f"A feature_len of {listed(says)}. Time and memory grow with it.{least}"


def characters(summary: Summary) -> str:
    found = summary["characters"]
    if not found["unknown"]:
        return f"All {counted(found['total'], 'character')} are in the alphabet."
    share = percent(found["unknown"], found["total"])
    return (
        f"{share} of the characters ({number(found['unknown'])} of {number(found['total'])}) are outside the alphabet; "
        f"the network sees a blank in their place.{_unreadable(summary)}"
    )


def _unreadable(summary: Summary) -> str:
    found = summary["characters"]["unreadable"]
    says = [f"{number(found[part])} in {part}" for part in parts(summary) if found.get(part)]
    if not says:
        return ""
    rows = counted(sum(found.values()), "row shows", "rows show")
    return f" {rows} it hardly more than blanks: {listed(says)}."


def duplicates(summary: Summary) -> list[str]:
    """What repeats, over all parts."""
    found = summary["duplicates"]
    if not found["near"] and not found["exact"]:
        return ["No text occurs twice."]
    says = [
        f"{counted(found['near'], 'row repeats', 'rows repeat')} an earlier one, but for case, spaces and punctuation; "
        f"{_or_none(found['exact'])} of them to the letter."
    ]
    if found["conflicting"]:
        says.append(
            f"{counted(found['conflicting'], 'repeats', 'repeat')} a row of another class: one of the two labels is "
            "wrong, or both fit."
        )
    removed = found["removed"]
    says.append(f"{counted(removed, 'was', 'were')} removed." if removed else "None was removed.")
    return says


def overlaps(summary: Summary) -> list[str]:
    """Which parts share texts."""
    says = []
    for name, found in summary["duplicates"]["across"].items():
        inside, _, other = name.partition(" in ")
        rows = summary["parts"].get(inside, {}).get("rows", 0)
        if not found["near"]:
            says.append(f"No {inside} text stands in {other} too.")
            continue
        share = f" ({percent(found['near'], rows)})" if rows else ""
        stand = "stands" if found["near"] == 1 else "stand"
        says.append(
            f"{counted(found['near'], f'{inside} text')}{share} {stand} in {other} too, "
            f"{_or_none(found['exact'])} to the letter."
        )
    return says


def encoding(summary: Summary) -> list[str]:
    how = summary["encoding"]
    length = number(how["feature_len"])
    ways = {
        "paper": f"Upper case counts as lower case; the last {length} characters of a text are read, from its end.",
        "full": f"Upper and lower case are kept apart; the last {length} characters of a text are read, from its end.",
        "notebook": f"Upper case is unknown; the first {length} characters of a text are read, in reading order.",
    }
    accents = (
        "é counts as e." if how["fold_accents"] else "Letters with accents are read only if the alphabet has them."
    )
    own = []
    if summary["fit"]["alphabet"]:
        own = [
            f"The alphabet was made of the training texts: {counted(len(how['alphabet']), 'character')}; "
            "--alphabet usual keeps to that of the mode."
        ]
    return [ways.get(how["mode"], f"{length} characters of a text are read."), accents, *own]


def _or_none(count: int) -> str:
    return number(count) if count else "none"
