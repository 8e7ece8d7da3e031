"""Merging and renaming of labels by a map, a CSV file of ``from,to`` in each line, and proposals for one."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path

from crepe_dist import spreadsheet
from crepe_dist.errors import UserError
from crepe_dist.files import MAX_NAMES_BYTES, read_bytes, write_csv

Pairs = tuple[tuple[str, str], ...]  # labels as read, and the classes that they become
HEADER = ["from", "to"]
LEAST_LETTERS = 5  # of a word in which one letter may be a typing error
RARE = 0.2  # most rows of a mistyped label, as a share of those of the right one


def read_map(path: Path) -> Pairs:
    """Read a map of labels."""
    mapped: dict[str, str] = {}
    again = "write from,to in each line, such as: Billing,billing"
    try:
        text = read_bytes(path, MAX_NAMES_BYTES).decode("utf-8-sig")
        lines = csv.reader(io.StringIO(text, newline=""), strict=True)
        rows = [[spreadsheet.original(cell).strip() for cell in row] for row in lines]
    except (OSError, ValueError, csv.Error) as error:
        why = getattr(error, "strerror", None) or str(error)[:300]
        raise UserError(f"--merge-labels: {path} cannot be read", why, again) from error
    for number, row in enumerate(rows, start=1):
        if not any(row) or (number == 1 and [cell.lower() for cell in row] == HEADER):
            continue
        problem = "" if len(row) == 2 and all(row) else f"{','.join(row)!r:.80} is not a label and its new name"
        if not problem and mapped.setdefault(row[0], row[1]) != row[1]:
            problem = f"{row[0]!r:.40} becomes both {mapped[row[0]]!r:.40} and {row[1]!r:.40}"
        if problem:
            raise UserError(f"--merge-labels: record {number} of {path} cannot be used", problem, again)
    chained = next((to for name, to in mapped.items() if mapped.get(to, to) != to), None)
    if chained is not None:
        why = f"{chained!r:.40} is the new name of one label, and becomes {mapped[chained]!r:.40} itself"
        raise UserError(f"--merge-labels: {path} maps a label twice", why, "give the last name of each label")
    return tuple((name, to) for name, to in mapped.items() if name != to)


def write_map(path: Path, proposed: Mapping[str, str]) -> None:
    """Write a map of labels, with a header."""
    write_csv(path, (dict(zip(HEADER, pair)) for pair in proposed.items()), HEADER)


def variants(rows: Mapping[str, int]) -> dict[str, str]:
    """Propose the labels to merge: those that differ from a more frequent one in case, spaces or one typing error.

    A typing error is a letter more, less, changed or swapped with the next one, in a word of some letters. Words may
    differ in one letter rightly, so a mistyped label must also be rare.

    Args:
        rows: number of rows of each label.
    """
    proposed: dict[str, str] = {}
    exact: dict[str, str] = {}  # the most frequent label of each spelling without spaces
    named: dict[str, str] = {}  # that label by its words
    near: dict[str, list[str]] = {}  # labels by what is left of them without one letter
    for label in sorted(rows, key=lambda label: (-rows[label], label)):
        key = " ".join(label.replace("_", " ").replace("-", " ").split()).casefold()
        target = exact.setdefault(key.replace(" ", ""), label)
        if target != label:
            proposed[label] = target
            continue
        rests = {key, *(key[:place] + key[place + 1 :] for place, each in enumerate(key) if each.isalpha())}
        others = sorted({other for rest in rests for other in near.get(rest, ())})
        likely = [other for other in others if _one_typo(key, other) and rows[label] <= RARE * rows[named[other]]]
        if likely:
            proposed[label] = max((named[other] for other in likely), key=lambda other: rows[other])
        else:  # only right spellings attract others, so that no chain leads far away
            named[key] = label
            for rest in rests:
                near.setdefault(rest, []).append(key)
    return proposed


def _one_typo(one: str, other: str) -> bool:
    start = 0
    while start < min(len(one), len(other)) and one[start] == other[start]:
        start += 1
    end = 0
    while end < min(len(one), len(other)) - start and one[-1 - end] == other[-1 - end]:
        end += 1
    first, second = one[start : len(one) - end], other[start : len(other) - end]
    word = one[:start].rpartition(" ")[2] + max(first, second, key=len) + one[len(one) - end :].partition(" ")[0]
    is_one = max(len(first), len(second)) == 1 or (len(first) == 2 and first == second[::-1])
    return is_one and (first + second).isalpha() and len(word) >= LEAST_LETTERS
