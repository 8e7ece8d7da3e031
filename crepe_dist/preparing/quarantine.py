"""Quarantine: the unusable rows of a preparation, each with its reason, and the check that most rows are usable."""

from __future__ import annotations

import heapq
import json
import math
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from crepe_dist.data import dataset
from crepe_dist.data.dataset import ALL_SPLITS, QUARANTINE
from crepe_dist.errors import UserError
from crepe_dist.files.atomic_write import sync
from crepe_dist.formatting import percent, truncate_to_width
from crepe_dist.preparing.formats import ENCODING_REMEDY, NOT_UTF_8, excerpt
from crepe_dist.preparing.formats.lines import DAMAGED_GZIP
from crepe_dist.preparing.label_parsing import ABSENT, MULTIPLE_LABELS, parse_label
from crepe_dist.preparing.reading import MAX_CLASSES, NO_LABEL, UNKNOWN_LABEL
from crepe_dist.preparing.spec import PreparationSpec
from crepe_dist.preparing.splitting import TEST, UNKNOWN, UNLABELLED, Assignment
from crepe_dist.preparing.spool import SpooledRows, SpooledTexts

MAX_SHOWN = 5
LABEL_WIDTH = 40  # terminal columns of a label in a message
# If MIN_ROWS rows or more have more distinct labels than this fraction of them, another column must be the label.
MAX_CLASS_FRACTION, MIN_ROWS = 0.5, 40
REMEDIES = {
    "unusable weight": "give every row a number from 0 as its weight",
    MULTIPLE_LABELS: "give --labels multilabel, or keep one label per row",
    "not a single value": "give --labels soft for shares of classes, --labels multilabel for a list, or name a key in "
    "it",
    "unusable label": "write 1 in the column of each class of a row, and 0 in the others",
    "unusable level": "fill in the levels above, or give another separator with --levels, such as ' > '",
    "unusable number": "leave missing ones empty, and write 1234.5 for 1.234,5; or read the column with --category",
    "unusable share": "give every row a share from 0 for each class, and at least one above 0",
    NOT_UTF_8: ENCODING_REMEDY,
    "empty text": "fill in or remove the rows without text",
    UNKNOWN_LABEL: "use only labels that occur in the training rows (or in classes.txt)",
    "not CSV": "double the quotes inside quoted fields",
}


class Quarantine(NamedTuple):
    """The unusable rows.

    Attributes:
        reasons: number of lines by kind of reason.
        unlabelled: number of lines of files without labels.
        first: first records; those without a label come last.
        damaged: sources that end early, by index, with the reason.
    """

    reasons: Counter[str]
    unlabelled: int
    examples: list[dict[str, Any]]
    damaged: dict[int, str]

    @property
    def lines(self) -> int:
        """Number of unusable lines."""
        return sum(self.reasons.values())


def write_quarantine(folder: Path, spec: PreparationSpec, collected: SpooledRows, assignment: Assignment) -> Quarantine:
    """Write all unusable rows in the order of the sources."""
    reasons: Counter[str] = Counter()
    of_unlabelled = 0
    damaged: dict[int, str] = {}
    first: list[dict[str, Any]] = []
    left_out: list[dict[str, Any]] = []
    unknown = _iter_unknown(spec, collected, assignment)
    everything = heapq.merge(
        collected.iter_invalid_rows(), unknown, key=lambda record: (record["source"], record["line"])
    )
    with (folder / QUARANTINE).open("w", encoding="utf-8") as stream:
        for record in everything:
            source = record.pop("source")
            if record["reason"].startswith(DAMAGED_GZIP):
                damaged[source] = record["reason"]
            stream.write(json.dumps(record, ensure_ascii=False) + "\n")
            reasons[record["reason"].split(":")[0]] += record["lines"]
            of_unlabelled += record["lines"] * (collected.sources[source].split == dataset.UNLABELLED)
            kept = left_out if record["reason"] == NO_LABEL else first
            kept += [record] if len(kept) < MAX_SHOWN else []
    sync(folder / QUARANTINE)
    return Quarantine(reasons, of_unlabelled, [*first, *left_out][:MAX_SHOWN], damaged)


def _iter_unknown(spec: PreparationSpec, collected: SpooledRows, assignment: Assignment) -> Iterator[dict[str, Any]]:
    corrected = " once they are corrected" * (collected.corrections is not None)
    of = f"in the training rows{corrected}" if spec.classes is None else "a class of the model"
    texts = SpooledTexts(collected.texts)
    for index in np.flatnonzero(assignment == UNKNOWN).tolist():
        row = collected.rows[index : index + 1]
        file, label = int(row["file"][0]), collected.labels[int(row["label"][0])]
        label = ", ".join(parse_label(label, spec.label_kind))
        yield {
            "file": collected.sources[file].name,
            "source": file,
            "line": int(row["line"][0]),
            "reason": f"{UNKNOWN_LABEL}: {label!r:.40} is not {of}",
            "excerpt": excerpt(texts.get(row)[0]),
            "lines": 1,
        }


def save_quarantine(folder: Path, out: Path) -> Path | None:
    """Save the quarantine of a failed preparation beside ``out``, under a name that is not read as data later."""
    if not (folder / QUARANTINE).is_file() or (folder / QUARANTINE).stat().st_size == 0:
        return None
    kept = quarantine_path(out)
    shutil.copyfile(folder / QUARANTINE, kept)
    return kept


def quarantine_path(out: Path) -> Path:
    """Return the path of the quarantine that a failed preparation leaves beside ``out``."""
    return out.with_name(f"{out.name}.quarantine")


def check_rows(
    spec: PreparationSpec, collected: SpooledRows, assignment: Assignment, classes: list[str], quarantine: Quarantine
) -> None:
    """Raise ``UserError`` if too many rows are unusable, or the labels are no classes."""
    reasons, damaged = quarantine.reasons, quarantine.damaged
    labelled = sum(count for label, count in collected.valid.items() if label != ABSENT)
    unlabelled = collected.valid[ABSENT] + quarantine.unlabelled
    total = collected.num_read - unlabelled
    shown = [f"{bad['file']}:{bad['line']}: {bad['reason']}" for bad in quarantine.examples]
    most = max(reasons, key=lambda reason: reasons[reason], default="")
    remedy = REMEDIES.get(
        most,
        "correct them, or set --input-format, --header, --label or --text-column to read them differently",
    )
    read_part = "train" if spec.classes is None else "test"
    used = ", ".join(source.name for source in collected.sources if source.split == read_part)[:200]
    if not labelled:
        why = f"the first: {'; '.join(shown)}" if shown else "it has no rows, or only a header"
        raise UserError(f"no usable row was found in {used}", why, remedy)
    # Many texts without labels may not hide that most of the others are unusable.
    for bad, of, rows in (
        (quarantine.lines - quarantine.unlabelled - reasons[NO_LABEL], total, "rows"),
        (quarantine.unlabelled, unlabelled, "unlabelled rows"),
    ):
        if bad > spec.max_bad * of:
            raise UserError(
                f"{bad:,} of {of:,} {rows} are unusable, more than {percent(spec.max_bad)}",
                f"the first: {'; '.join(each for each in shown if not each.endswith(f': {NO_LABEL}'))}",
                # 1.234 would still be read as a number, among others such as 1.234.567.
                remedy
                if most == "unusable number"
                else f"{remedy}; or skip them with --max-bad {math.ceil(100 * bad / of) / 100:g}",
            )
    if damaged and spec.max_bad < 1:
        file, reason = next(iter(damaged.items()))
        more = f", and {len(damaged) - 1} more" if len(damaged) > 1 else ""
        raise UserError(
            f"{collected.sources[file].name}{more} cannot be read to its end: {reason}",
            f"{collected.files[file]['rows']:,} of its rows were read; the rest is lost and cannot be counted",
            "get the file again; or use the rows that were read: --max-bad 1",
        )
    first = ", ".join(repr(truncate_to_width(name, LABEL_WIDTH)) for name in classes[:5])
    if spec.classes is not None:
        if not (assignment == TEST).any():
            raise UserError(
                f"none of the {total:,} rows of {used} can be scored",
                f"the first classes of the model are {first}; the first rows: {'; '.join(shown)}",
                "give rows with these labels, or name the column of the label with --label",
            )
        return
    for code, part in enumerate(ALL_SPLITS):
        files = [source.name for source in collected.sources if source.split == part]
        if part != "train" and files and not (assignment == code).any():
            where = "unlabelled files, or all are among the labelled rows" if code == UNLABELLED else f"{part} files"
            remedy = f"name other files with --{part}, or leave them out"
            raise UserError(f"no usable row was found in the {where}", ", ".join(files)[:200], remedy)
    is_text = len(classes) > MAX_CLASSES or (len(classes) > MAX_CLASS_FRACTION * labelled and labelled > MIN_ROWS)
    if is_text or len(classes) < 2:
        reads = next((about["reads"] for about in collected.files.values() if about["reads"]), "label and text")
        raise UserError(
            f"{len(classes):,} different labels in {labelled:,} rows" if is_text else f"only {len(classes)} class",
            f"read as {truncate_to_width(reads, 200)}; the first labels: {first}",
            "name the column of the label: --label and --text-column take names or numbers (--label 3 --text-column "
            "2); use --header yes if the first line has names",
        )
