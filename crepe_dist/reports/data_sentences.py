"""Sentences about a data set, shared by its HTML page and its terminal report.

Every function takes the summary made by ``python -m crepe_dist.prepare``, after ``wording.clean``.
"""

from __future__ import annotations

from typing import Any

from crepe_dist.data.alphabet import read_of_long
from crepe_dist.data.dataset import CONTRADICTIONS, SPLITS
from crepe_dist.data.targets import SEVERAL, SOFT
from crepe_dist.settings.data_options import LONGEST_FITTED, WHOLE
from crepe_dist.wording import counted, cut, listed, number, percent

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


def rows_by_part(summary: Summary) -> dict[str, int]:
    """Return the number of rows of each split, and of the unlabelled texts if there are any."""
    rows = {split: summary["parts"][split]["rows"] for split in splits(summary)}
    return {**rows, **({"unlabelled": summary["unlabelled"]["rows"]} if "unlabelled" in summary else {})}


def overview(summary: Summary) -> str:
    classes = counted(len(summary["classes"]), "class", "classes")
    shares = [f"{number(summary['parts'][split]['rows'])} {split}" for split in splits(summary)]
    missing = "" if "test" in summary["parts"] else " There is no test split."
    more = f" {number(summary['unlabelled']['rows'])} more without labels." if "unlabelled" in summary else ""
    return f"{counted(labelled(summary), 'document')} in {classes}: {listed(shares)}.{more}{missing}"


def labelled(summary: Summary) -> int:
    """Count the rows of all splits."""
    return sum(split["rows"] for split in summary["parts"].values())


def flow(summary: Summary) -> str:
    rows = summary["rows"]
    lost = [counted(rows[key], one, many) for key, _, one, many in LOSSES if rows[key]]
    rest = f"{listed(lost)}; {counted(rows['kept'], 'is', 'are')} kept." if lost else "all are kept."
    return f"{counted(rows['read'], 'row was', 'rows were')} read; {rest}{_corrections(summary)}"


def _corrections(summary: Summary) -> str:
    """Describe what corrections did; empty if there were none."""
    counts = summary.get("corrections")
    if counts is None:
        return ""
    others = (("kept", "kept"), ("already", "had it already"), ("stale", "not applied: another text or label"))
    more = [f"{number(counts[key])} {words}" for key, words in others if counts[key]]
    rest = f" ({', '.join(more)})" if more else ""
    return f" {counted(counts['applied'], 'label was', 'labels were')} corrected by {counts['file']}{rest}."


def totals(summary: Summary) -> list[int]:
    """Count the rows of each class over all splits."""
    counts = [split["classes"] for split in summary["parts"].values()]
    return [sum(rows) for rows in zip(*counts)] if counts else [0] * len(summary["classes"])


def shown_classes(summary: Summary, most: int) -> list[int]:
    """Return the indices of the classes to show: all in order, or only the ``most`` largest, largest first."""
    count = totals(summary)
    if len(count) <= most:
        return list(range(len(count)))
    return sorted(range(len(count)), key=lambda index: (-count[index], index))[:most]


def all_labels(summary: Summary) -> int:
    """Return the number of which the classes' shares are: the rows, which may have several labels each."""
    return labelled(summary) if "labels" in summary else sum(totals(summary))


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
    least = f"the smallest is {smallest} ({number(counts[fewest])})."
    if empty := counts.count(0):
        least = f"without training rows: {smallest}{f' and {number(empty - 1)} more' if empty > 1 else ''}."
    return f"The largest class is {largest} ({counted(counts[most], 'training row')}); {least}"


def _named(summary: Summary, index: int) -> str:
    return cut(summary["classes"][index], LABEL_CELLS)


def lengths(summary: Summary) -> str:
    """Describe the distribution of the text lengths."""
    values = summary["lengths"]["percentiles"]
    if not values:
        return ""
    shares = ", ".join(f"{share} % up to {number(values[share])}" for share in ("90", "95", "99"))
    twice = " Here and below, rare characters count twice." if summary["fit"]["rare"] else ""
    return (
        f"Half of the texts have up to {counted(values['50'], 'character')}, {shares}, the longest has "
        f"{number(values['100'])}.{twice}"
    )


def cutting(summary: Summary) -> str:
    """Describe how many texts are longer than ``feature_len``, and how it was chosen, unless it was given."""
    feature_len, share = summary["encoding"]["feature_len"], summary["lengths"]["cut"]
    length = f"feature_len ({number(feature_len)} characters)"
    if share:
        count = number(round(share * summary["rows"]["kept"]))
        cut = f"{percent(share)} ({count}) are longer than {length} and lose their {summary['encoding']['cut']}."
    else:
        cut = f"No text is longer than {length}, so nothing is cut off."
    if not summary["fit"]["length"]:
        return cut
    if feature_len == LONGEST_FITTED:
        return f"{cut} This is the largest feature_len that is chosen automatically; set --feature-len for more."
    return f"{cut} It was chosen so that {WHOLE} % of the training texts fit."


def characters(summary: Summary) -> str:
    """Describe how many characters are outside the alphabet."""
    counts = summary["characters"]
    if counts["unknown"]:
        sentences = (
            f"{percent(counts['unknown'], counts['total'])} of the characters ({number(counts['unknown'])} of "
            f"{number(counts['total'])}) are outside the alphabet; the network sees blanks instead."
        )
    else:
        sentences = f"All {counted(counts['total'], 'character')} are in the alphabet."
    blank = {name: rows for name, rows in counts["unreadable"].items() if rows}
    if rows := sum(blank.values()):
        consist = counted(rows, "row consists", "rows consist")
        by_split = [f"{number(count)} in {name}" for name, count in blank.items()]
        sentences += f" {consist} almost entirely of such characters: {listed(by_split)}."
    return sentences


def duplicates(summary: Summary) -> list[str]:
    """Describe the duplicates over all splits."""
    counts = summary["duplicates"]
    repeated = summary.get("unlabelled", {}).get("duplicates", 0)
    more = ["Unlabelled texts that repeat others were removed: " + counted(repeated, "row") + "."] if repeated else []
    if not counts["near"] and not counts["exact"]:
        return [f"No {'labelled ' if 'unlabelled' in summary else ''}text occurs twice.", *more]
    repeat = counted(counts["near"], "row repeats", "rows repeat")
    exact = counted(counts["exact"], "is an exact copy", "are exact copies")
    sentences = [f"{repeat} an earlier row up to case, spaces and punctuation; {exact}."]
    if counts["conflicting"]:
        sentences.append(
            f"{counted(counts['conflicting'], 'repeats', 'repeat')} a row of another class: one of the two labels is "
            f"wrong, or both are right ({CONTRADICTIONS})."
        )
    removed = counted(counts["removed"], "was", "were") if counts["removed"] else "None was"
    return [*sentences, f"{removed} removed.", *more]


def overlaps(summary: Summary) -> list[str]:
    """Describe the overlap between each pair of splits."""
    sentences = []
    for name, counts in summary["duplicates"]["across"].items():
        inside, _, other = name.partition(" in ")
        if not counts["near"]:
            sentences.append(f"No {inside} text also occurs in {other}.")
            continue
        rows = summary["parts"].get(inside, {}).get("rows", 0)
        occur = "occurs" if counts["near"] == 1 else "occur"
        exact = number(counts["exact"]) if counts["exact"] else "none"
        sentences.append(
            f"{counted(counts['near'], f'{inside} text')} ({percent(counts['near'], rows)}) also {occur} in {other}, "
            f"{exact} as an exact copy."
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
    more = []
    if summary["fit"]["alphabet"]:
        rare = summary["fit"]["rare"]
        pairs = f", of which {number(rare)} rare ones are read as two codes each" if rare else ""
        more = [
            "The alphabet was built from the training texts: "
            f"{counted(len(options['alphabet']) + rare, 'character')}{pairs}; "
            "--alphabet usual uses the mode's own alphabet instead."
        ]
    if summary["strip_html"]:
        more.append("HTML tags are removed, as predict will do with all texts.")
    return [modes[options["mode"]], cut, accents, *more]
