"""Corrections of labels: a list such as ``inspect`` writes, which a person may have edited, applied to the rows read.

A row of the list is for the row of a source that has its file and line, if the hash of its text is still the same.
"""

from __future__ import annotations

import difflib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from crepe_dist import files
from crepe_dist.data.arrays import spelled
from crepe_dist.data.targets import ONE
from crepe_dist.errors import UserError
from crepe_dist.files import printable, sha256
from crepe_dist.preparing.formats.columns import Wanted
from crepe_dist.preparing.formats.lines import Lines
from crepe_dist.preparing.formats.tables import open_table
from crepe_dist.preparing.labelling import classes_of
from crepe_dist.preparing.reading import Job
from crepe_dist.preparing.spool import ROW, ROWS, Collected

COLUMNS = ("file", "line", "hash", "label", "suggested")
LONGEST_LINE = 18  # digits
APPLIED, KEPT, ALREADY, STALE = "applied", "kept", "already", "stale"  # what became of a correction
Place = tuple[str, int]


class Correction(NamedTuple):
    """Row of a list: hash of the text, label that was judged, and label to give (empty to keep the label)."""

    hash: str
    label: str
    suggested: str


@dataclass(frozen=True)
class Corrections:
    """List of corrections by file and line."""

    file: str
    sha256: str
    of: dict[Place, Correction]


def read_corrections(path: Path) -> Corrections:
    """Read a list, also as a spreadsheet saves it.

    Raises:
        UserError: it cannot be read, lacks a column, or contradicts itself.
    """
    if not path.is_file():
        raise UserError(f"--corrections: {path} is not a file", remedy="name a label_errors.csv of inspect")
    name = printable(path)
    corrections: dict[Place, Correction] = {}
    wanted = Wanted(label="label", texts=("suggested",))
    table = open_table("csv", Lines(path), name, wanted, "yes", None, keep=True)
    if missing := [column for column in COLUMNS if column not in table.kept]:
        raise UserError(f"{name} has no column {missing[0]!r}", remedy="give the label_errors.csv of inspect")
    for parsed in table.parsed():
        for bad in parsed.bad:
            raise UserError(f"{name}:{bad.line} cannot be read", bad.reason, "correct the line, or delete it")
        for row in parsed.rows:
            cells = dict(zip(table.kept, (files.original(cell).strip() for cell in row.cells)))
            if not cells["line"].isdecimal() or len(cells["line"]) > LONGEST_LINE:
                raise UserError(f"{name}:{row.line} names no line", f"its line is {cells['line']!r:.40}", "delete it")
            place = (cells["file"], int(cells["line"]))
            correction = Correction(cells["hash"], cells["label"], cells["suggested"])
            if corrections.setdefault(place, correction) != correction:
                raise UserError(f"{name}:{row.line} corrects a row a second time", "{}:{}".format(*place), "delete one")
    return Corrections(printable(path.name), sha256(path), corrections)


def correct(collected: Collected, job: Job, corrections: Corrections) -> None:
    """Change labels of the rows that were read, in their file, and count what became of the corrections.

    ``applied`` changed a label; ``kept`` suggest none, or the one that was judged; the rows of ``already`` have that
    label in the source; those of ``stale`` are gone, or have another text or label than the one that was judged.

    Raises:
        UserError: a label to give is not the class of any row, or no correction is for these sources.
    """
    number = {label: index for index, label in enumerate(collected.labels)}
    labels, counts, stale = list(collected.labels), Counter[str](), ""
    rows = np.memmap(collected.folder / ROWS, ROW, "r+") if len(collected.rows) else collected.rows
    first = {name: index for index, (name, _) in reversed(list(enumerate(job.sources)))}
    ends = np.searchsorted(rows["file"], np.arange(len(job.sources) + 1))
    for (file, line), correction in corrections.of.items():
        if correction.suggested in ("", correction.label):
            counts[KEPT] += 1
            continue
        start, end = ends[first[file] : first[file] + 2].tolist() if file in first else (0, 0)
        row = start + int(np.searchsorted(rows["line"][start:end], line))
        same = row < end and rows["line"][row] == line and spelled(int(rows["exact"][row])) == correction.hash
        label = _spelled(correction.suggested, job, collected.labels, corrections.file)
        if same and labels[rows["label"][row]] == label:
            counts[ALREADY] += 1
        elif same and (job.labelled != ONE or labels[rows["label"][row]] == correction.label):
            if label not in number:
                number[label] = len(labels)
                labels.append(label)
            rows["label"][row] = number[label]
            counts[APPLIED] += 1
        else:
            counts[STALE] += 1
            stale = stale or f"{file}:{line}"
    if counts[STALE] and not counts[APPLIED] + counts[ALREADY]:
        raise UserError(
            f"none of the {counts[STALE]:,} corrections in {corrections.file} is for these sources",
            f"the first is for {stale}, whose text or label differs there; the sources are "
            f"{', '.join(name for name, _ in job.sources)}"[:300],
            "give the sources and flags of the data set that was inspected, or inspect again",
        )
    outcomes = {name: counts[name] for name in (APPLIED, KEPT, ALREADY, STALE)}
    about = {"file": corrections.file, "sha256": corrections.sha256, **outcomes, "first_stale": stale}
    collected.labels, collected.corrected = labels, about


def _spelled(suggested: str, job: Job, labels: list[str], file: str) -> str:
    """Return the label string of a suggestion, whose classes must be those of rows."""
    known = classes_of(labels, job.labelled)

    def name(label: str) -> str:
        if label.strip() in known:
            return label.strip()
        alike = difflib.get_close_matches(label, known, 1)
        remedy = f"did you mean {alike[0]!r:.60}?" if alike else "correct the list, or leave the suggestion empty"
        raise UserError(f"{file} gives a row the label {label!r:.60}, which no row of the sources has", remedy=remedy)

    return name(suggested) if job.labelled == ONE else job.reading.labelling.label(suggested, name)
