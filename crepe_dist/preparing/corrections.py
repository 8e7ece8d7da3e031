"""Corrections of labels: a list such as ``inspect`` writes, which a person may have edited, applied to the rows read.

A row of the list is for the row of a source that has its file and line, if the hash of its text is still the same.
"""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Set
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from crepe_dist.data.arrays import format_hash
from crepe_dist.data.dataset import SPLITS
from crepe_dist.data.targets import SINGLE_LABEL
from crepe_dist.errors import UserError
from crepe_dist.files.csv_cells import unescape_cell
from crepe_dist.files.safe_read import escape_path, sha256
from crepe_dist.preparing.formats.columns import ColumnSpec
from crepe_dist.preparing.formats.lines import LineReader
from crepe_dist.preparing.formats.tables import open_table
from crepe_dist.preparing.spec import PreparationSpec
from crepe_dist.preparing.splitting import TEST, VALIDATION, Assignment
from crepe_dist.preparing.spool import ROW, ROWS, SpooledRows

COLUMNS = ("file", "line", "hash", "label", "suggested")
MAX_LINE_LENGTH = 18  # digits
# Outcomes of a correction; ``correct`` describes them.
OUTCOMES = APPLIED, HELD_OUT, CONFIRMED, ALREADY_APPLIED, OUTDATED = "applied", "held_out", "kept", "already", "stale"
Place = tuple[str, int]


class Correction(NamedTuple):
    """Row of a list: hash of the text, label that was judged, and label to give (empty to keep the label)."""

    hash: str
    label: str
    suggested: str


@dataclass(frozen=True)
class Corrections:
    """List of corrections by file and line.

    Attributes:
        held_out: the rows of the validation and the test split are also corrected.
    """

    file: str
    sha256: str
    by_place: dict[Place, Correction]
    held_out: bool = False


def read_corrections(path: Path, *, held_out: bool = False) -> Corrections:
    """Read a list, also as a spreadsheet saves it; ``held_out`` is an attribute of ``Corrections``.

    Raises:
        UserError: it cannot be read, lacks a column, or contradicts itself.
    """
    if not path.is_file():
        raise UserError(f"--corrections: {path} is not a file", remedy="name a label_errors.csv of inspect")
    name = escape_path(path)
    corrections: dict[Place, Correction] = {}
    wanted = ColumnSpec(label="label", texts=("suggested",))
    table = open_table("csv", LineReader(path), name, wanted, "yes", None, keep_cells=True)
    if missing := [column for column in COLUMNS if column not in table.kept_columns]:
        raise UserError(f"{name} has no column {missing[0]!r}", remedy="give the label_errors.csv of inspect")
    for parsed in table.iter_parsed():
        for bad in parsed.invalid:
            raise UserError(f"{name}:{bad.line} cannot be read", bad.reason, "correct the line, or delete it")
        for row in parsed.rows:
            cells = dict(zip(table.kept_columns, (unescape_cell(cell).strip() for cell in row.cells)))
            if not cells["line"].isdecimal() or len(cells["line"]) > MAX_LINE_LENGTH:
                raise UserError(f"{name}:{row.line} names no line", f"its line is {cells['line']!r:.40}", "delete it")
            place = (cells["file"], int(cells["line"]))
            correction = Correction(cells["hash"], cells["label"], cells["suggested"])
            if corrections.setdefault(place, correction) != correction:
                raise UserError(f"{name}:{row.line} corrects a row a second time", "{}:{}".format(*place), "delete one")
    return Corrections(escape_path(path.name), sha256(path), corrections, held_out)


def apply_corrections(
    collected: SpooledRows, spec: PreparationSpec, corrections: Corrections, assignment: Assignment, classes: Set[str]
) -> None:
    """Change labels of the rows that were read, in their file, and count the outcomes of the corrections.

    ``applied``: the label was changed. ``held_out``: the row is in the validation or the test split, which keep their
    labels unless ``corrections.held_out``. ``kept``: the list suggests no label, or the label that was judged.
    ``already``: the row has the suggested label in the source. ``stale``: the row is gone, or has another text or label
    than the row that was judged. ``splits`` has the number of changed labels of each split.

    Args:
        fate: fate of each row, which was decided by the labels of the source.
        classes: classes of the training rows.

    Raises:
        UserError: a label to give is not one of ``classes``, or no correction is for these sources.
    """
    number = {label: index for index, label in enumerate(collected.labels)}
    labels, counts, changed, stale = list(collected.labels), Counter[str](), Counter[int](), ""
    rows = np.memmap(collected.folder / ROWS, ROW, "r+") if len(collected.rows) else collected.rows
    names = [source.name for source in collected.sources]
    first = {name: index for index, name in reversed(list(enumerate(names)))}
    ends = np.searchsorted(rows["file"], np.arange(len(names) + 1))
    for (file, line), correction in corrections.by_place.items():
        if correction.suggested in ("", correction.label):
            counts[CONFIRMED] += 1
            continue
        start, end = ends[first[file] : first[file] + 2].tolist() if file in first else (0, 0)
        row = start + int(np.searchsorted(rows["line"][start:end], line))
        same = row < end and rows["line"][row] == line and format_hash(int(rows["exact"][row])) == correction.hash
        label = _parse_suggestion(correction.suggested, spec, classes, corrections.file)
        if same and labels[rows["label"][row]] == label:
            counts[ALREADY_APPLIED] += 1
        elif not same or (spec.label_kind == SINGLE_LABEL and labels[rows["label"][row]] != correction.label):
            counts[OUTDATED] += 1
            stale = stale or f"{file}:{line}"
        elif assignment[row] in (VALIDATION, TEST) and not corrections.held_out:
            counts[HELD_OUT] += 1
        else:
            if label not in number:
                number[label] = len(labels)
                labels.append(label)
            rows["label"][row] = number[label]
            counts[APPLIED] += 1
            changed[int(assignment[row])] += 1
    if counts[OUTDATED] and not counts[APPLIED] + counts[ALREADY_APPLIED] + counts[HELD_OUT]:
        raise UserError(
            f"none of the {counts[OUTDATED]:,} corrections in {corrections.file} is for these sources",
            f"the first is for {stale}, whose text or label differs there; the sources are {', '.join(names)}"[:300],
            "give the sources and flags of the data set that was inspected, or inspect again",
        )
    outcomes = {name: counts[name] for name in OUTCOMES}
    splits = {split: changed[code] for code, split in enumerate(SPLITS)}
    about = {"file": corrections.file, "sha256": corrections.sha256, **outcomes, "splits": splits, "first_stale": stale}
    collected.labels, collected.corrections = labels, about


def _parse_suggestion(suggested: str, spec: PreparationSpec, known: Set[str], file: str) -> str:
    """Return the label string of a suggestion. Its classes must be classes of training rows."""

    def name(label: str) -> str:
        if label.strip() in known:
            return label.strip()
        alike = difflib.get_close_matches(label, known, 1)
        remedy = f"did you mean {alike[0]!r:.60}?" if alike else "correct the list, or leave the suggestion empty"
        what = f"{file} gives a row the label {label!r:.60}, which no row of the sources has that is trained on"
        raise UserError(what, remedy=remedy)

    return name(suggested) if spec.label_kind == SINGLE_LABEL else spec.read_options.labelling.parse(suggested, name)
