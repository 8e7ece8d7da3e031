"""Corrections of labels. They come from a CSV file that ``inspect`` wrote and that a person may have edited.

A correction identifies a row by its file and line, and contains the hash of its text. The correction applies only if
the text of the row still has this hash.
"""

import difflib
from collections import Counter
from collections.abc import Set
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from crepe_dist.data.arrays import format_hash
from crepe_dist.data.targets import SINGLE_LABEL
from crepe_dist.errors import UserError
from crepe_dist.files.csv_cells import unescape_cell
from crepe_dist.files.safe_read import escape_path, sha256
from crepe_dist.preparing.formats.columns import ColumnSpec
from crepe_dist.preparing.open_source import open_source
from crepe_dist.preparing.sources import ReadOptions, Source
from crepe_dist.preparing.spec import PreparationSpec
from crepe_dist.preparing.splitting import TEST, VALIDATION, Assignment
from crepe_dist.preparing.spool import SpooledRows

COLUMNS = ("file", "line", "hash", "label", "suggested")
# Maximum number of digits in a line number.
MAX_LINE_LENGTH = 18
# Outcomes of a correction; see ``apply_corrections``.
OUTCOMES = APPLIED, HELD_OUT, CONFIRMED, ALREADY_APPLIED, OUTDATED = "applied", "held_out", "kept", "already", "stale"
# File name and line number of a row.
Place = tuple[str, int]


class Correction(NamedTuple):
    """Correction of one row.

    Attributes:
        hash: Hash of the text.
        label: Label at the time of the inspection.
        suggested: New label. If it is empty, the label stays unchanged.
    """

    hash: str
    label: str
    suggested: str


@dataclass(frozen=True)
class Corrections:
    """Corrections that were read from a CSV file.

    Attributes:
        file: Name of the CSV file.
        sha256: SHA-256 of the CSV file.
        by_place: Corrections, keyed by file name and line number.
    """

    file: str
    sha256: str
    by_place: dict[Place, Correction]


def read_corrections(path: Path) -> Corrections:
    """Read a CSV file of corrections. A spreadsheet program may have saved the file.

    Raises:
        UserError: The file cannot be read, lacks one of ``COLUMNS``, or contains two different corrections of a row.
    """
    if not path.is_file():
        raise UserError(f"--corrections: {path} is not a file", remedy="name a label_errors.csv that `inspect` wrote")
    name = escape_path(path)
    corrections: dict[Place, Correction] = {}
    options = ReadOptions(columns=ColumnSpec(label="label", texts=("suggested",)))
    table = open_source(Source(path, name, format="csv"), options, keep_cells=True)
    if missing := [column for column in COLUMNS if column not in table.kept_columns]:
        raise UserError(f"{name} has no column {missing[0]!r}", remedy="name a label_errors.csv that `inspect` wrote")
    for row in table.iter_rows():
        cells = dict(zip(table.kept_columns, (unescape_cell(cell).strip() for cell in row.cells)))
        if not cells["line"].isdecimal() or len(cells["line"]) > MAX_LINE_LENGTH:
            raise UserError(
                f"{name}:{row.line} has no line number", f"the column line has {cells['line']!r:.40}", "delete this row"
            )
        place = (cells["file"], int(cells["line"]))
        correction = Correction(cells["hash"], cells["label"], cells["suggested"])
        if corrections.setdefault(place, correction) != correction:
            raise UserError(
                f"{name}:{row.line} corrects a row a second time", "{}:{}".format(*place), "delete one of them"
            )
    return Corrections(escape_path(path.name), sha256(path), corrections)


def apply_corrections(
    collected: SpooledRows, spec: PreparationSpec, corrections: Corrections, assignment: Assignment, classes: Set[str]
) -> None:
    """Apply the corrections to the labels in the records file, and count their outcomes.

    ``collected.labels`` and ``collected.corrections`` are replaced. The outcomes are:

    - ``applied``: the label was changed.
    - ``held_out``: the row is in the validation or test split.
    - ``kept``: the suggested label is empty, or equals the old label.
    - ``already``: the row already has the suggested label.
    - ``stale``: the row does not exist, its text has changed, or its single label has changed.

    Args:
        assignment: Split of each row. The splits were drawn before the corrections.
        classes: Classes of the training rows.

    Raises:
        UserError: A suggested label is not in ``classes``, or all corrections are stale.
    """
    label_index = {label: index for index, label in enumerate(collected.labels)}
    labels, counts, stale = list(collected.labels), Counter[str](), ""
    rows = collected.map_for_writing()
    names = [source.name for source in collected.sources]
    first = {name: index for index, name in reversed(list(enumerate(names)))}
    ends = np.searchsorted(rows["file"], np.arange(len(names) + 1))
    for (file, line), correction in corrections.by_place.items():
        if correction.suggested in ("", correction.label):
            counts[CONFIRMED] += 1
            continue
        start, end = ends[first[file] : first[file] + 2].tolist() if file in first else (0, 0)
        row = start + int(np.searchsorted(rows["line"][start:end], line))
        is_same_text = (
            row < end and rows["line"][row] == line and format_hash(int(rows["exact"][row])) == correction.hash
        )
        label = _parse_suggestion(correction.suggested, spec, classes, corrections.file)
        if is_same_text and labels[rows["label"][row]] == label:
            counts[ALREADY_APPLIED] += 1
        elif not is_same_text or (spec.label_kind == SINGLE_LABEL and labels[rows["label"][row]] != correction.label):
            counts[OUTDATED] += 1
            stale = stale or f"{file}:{line}"
        elif assignment[row] in (VALIDATION, TEST):
            counts[HELD_OUT] += 1
        else:
            if label not in label_index:
                label_index[label] = len(labels)
                labels.append(label)
            rows["label"][row] = label_index[label]
            counts[APPLIED] += 1
    if counts[OUTDATED] and not counts[APPLIED] + counts[ALREADY_APPLIED] + counts[HELD_OUT]:
        raise UserError(
            f"none of the {counts[OUTDATED]:,} corrections in {corrections.file} is for these sources",
            f"the first is for {stale}, which does not exist or has changed; the sources are {', '.join(names)}"[:300],
            "give the sources and flags of the data set that was inspected, or inspect the data again",
        )
    outcomes = {name: counts[name] for name in OUTCOMES}
    report = {"file": corrections.file, "sha256": corrections.sha256, **outcomes, "first_stale": stale}
    collected.labels, collected.corrections = labels, report


def _parse_suggestion(suggested: str, spec: PreparationSpec, known: Set[str], file: str) -> str:
    """Return the label string for a suggested label.

    Raises:
        UserError: The suggested label contains a class that is not in ``known``.
    """

    def name(label: str) -> str:
        if label.strip() in known:
            return label.strip()
        similar = difflib.get_close_matches(label, known, 1)
        remedy = f"did you mean {similar[0]!r:.60}?" if similar else "correct the list, or leave the suggestion empty"
        what = f"{file} suggests the label {label!r:.60}, which no training row has"
        raise UserError(what, remedy=remedy)

    return name(suggested) if spec.label_kind == SINGLE_LABEL else spec.read_options.labelling.parse(suggested, name)
