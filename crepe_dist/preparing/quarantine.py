"""Quarantine: the file that lists the invalid rows of a preparation, and the checks that enough rows are valid."""

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
from crepe_dist.files.atomic_write import fsync
from crepe_dist.formatting import percent, truncate_to_width
from crepe_dist.preparing.formats import ENCODING_REMEDY, NOT_UTF_8, excerpt
from crepe_dist.preparing.formats.lines import DAMAGED_GZIP
from crepe_dist.preparing.label_parsing import ABSENT, MULTIPLE_LABELS, parse_label
from crepe_dist.preparing.reading import MAX_CLASSES, NO_LABEL, UNKNOWN_LABEL
from crepe_dist.preparing.spec import PreparationSpec
from crepe_dist.preparing.splitting import TEST, UNKNOWN, UNLABELLED, Assignment
from crepe_dist.preparing.spool import SpooledRows, SpooledTexts

# Maximum number of invalid rows that a message shows.
MAX_SHOWN = 5
# Width of a label in a message, in terminal columns.
LABEL_WIDTH = 40
# Maximum ratio of distinct labels to rows, and number of rows above which the ratio is checked. If the ratio is larger
# than this, the column is probably not the label column.
MAX_CLASS_FRACTION, MIN_ROWS = 0.5, 40
# Remedies, keyed by the start of the reason why rows are invalid. A message shows the remedy for the most frequent
# reason.
REMEDIES = {
    "unusable weight": "give every row a number from 0 as its weight",
    MULTIPLE_LABELS: "pass --labels multilabel, or keep one label per row",
    "not a single value": "pass --labels soft for probabilities of classes, --labels multilabel for a list, or "
    "name a key in the object",
    "unusable label": "write 1 in the column of each class of a row, and 0 in the others",
    "unusable probability": "give every row a probability from 0 for each class, and at least one above 0",
    NOT_UTF_8: ENCODING_REMEDY,
    "empty text": "fill in or remove the rows without text",
    UNKNOWN_LABEL: "use only labels that occur in the training rows (or in classes.txt)",
    "not CSV": "double the quotes inside quoted fields",
}


class Quarantine(NamedTuple):
    """Summary of the invalid rows.

    Attributes:
        reasons: Number of lines in invalid rows for each reason. The key is the start of the reason, without details.
            A row may have several lines; each of them counts as a row.
        unlabelled: Number of lines in invalid rows in the sources of unlabelled texts.
        examples: The first few invalid rows. Rows without a label are listed last.
        damaged: Reasons why sources end early, keyed by the index of the source.
    """

    reasons: Counter[str]
    unlabelled: int
    examples: list[dict[str, Any]]
    damaged: dict[int, str]

    @property
    def lines(self) -> int:
        """Number of lines in invalid rows."""
        return sum(self.reasons.values())


def write_quarantine(folder: Path, spec: PreparationSpec, collected: SpooledRows, assignment: Assignment) -> Quarantine:
    """Write all invalid rows to the quarantine file, in the order of the sources. Return a summary."""
    reasons: Counter[str] = Counter()
    of_unlabelled = 0
    damaged: dict[int, str] = {}
    first: list[dict[str, Any]] = []
    without_label: list[dict[str, Any]] = []
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
            examples = without_label if record["reason"] == NO_LABEL else first
            examples += [record] if len(examples) < MAX_SHOWN else []
    fsync(folder / QUARANTINE)
    return Quarantine(reasons, of_unlabelled, [*first, *without_label][:MAX_SHOWN], damaged)


def _iter_unknown(spec: PreparationSpec, collected: SpooledRows, assignment: Assignment) -> Iterator[dict[str, Any]]:
    corrected = " after the corrections" * (collected.corrections is not None)
    expected = f"in the training rows{corrected}" if spec.classes is None else "a class of the model"
    texts = SpooledTexts(collected.texts)
    for index in np.flatnonzero(assignment == UNKNOWN).tolist():
        row = collected.rows[index : index + 1]
        file, label = int(row["file"][0]), collected.labels[int(row["label"][0])]
        label = ", ".join(parse_label(label, spec.label_kind))
        yield {
            "file": collected.sources[file].name,
            "source": file,
            "line": int(row["line"][0]),
            "reason": f"{UNKNOWN_LABEL}: {label!r:.40} is not {expected}",
            "excerpt": excerpt(texts.get(row)[0]),
            "lines": 1,
        }


def save_quarantine(folder: Path, out: Path) -> Path | None:
    """Save a copy of a failed preparation's quarantine file next to ``out``. Return the path of the copy, or ``None``
    if the file is empty.

    The suffix of the copy is not the suffix of a data format. Therefore a later preparation of the parent folder does
    not read the copy as data.
    """
    if not (folder / QUARANTINE).is_file() or (folder / QUARANTINE).stat().st_size == 0:
        return None
    path = quarantine_path(out)
    shutil.copyfile(folder / QUARANTINE, path)
    return path


def quarantine_path(out: Path) -> Path:
    """Return the path of the quarantine file that a failed preparation of ``out`` saves."""
    return out.with_name(f"{out.name}.quarantine")


def check_rows(
    spec: PreparationSpec, collected: SpooledRows, assignment: Assignment, classes: list[str], quarantine: Quarantine
) -> None:
    """Check that enough rows are valid, and that the labels look like class names.

    Raises:
        UserError: Too many rows are invalid, a source ends early, a split has no valid row, there are fewer than two
            classes, or the label column is probably the wrong column.
    """
    reasons, damaged = quarantine.reasons, quarantine.damaged
    labelled = sum(count for label, count in collected.valid.items() if label != ABSENT)
    unlabelled = collected.valid[ABSENT] + quarantine.unlabelled
    total = collected.num_read - unlabelled
    shown = [f"{row['file']}:{row['line']}: {row['reason']}" for row in quarantine.examples]
    most = max(reasons, key=lambda reason: reasons[reason], default="")
    remedy = REMEDIES.get(
        most,
        "correct the rows, or read the file differently with --input-format, --label or --text-column",
    )
    read_part = "train" if spec.classes is None else "test"
    used = ", ".join(source.name for source in collected.sources if source.split == read_part)[:200]
    if not labelled:
        why = f"the first invalid rows: {'; '.join(shown)}" if shown else "the file has no rows, or only a header"
        raise UserError(f"{used} has no valid row", why, remedy)
    # Labelled and unlabelled rows are checked separately. Otherwise many valid unlabelled texts could hide the fact
    # that most labelled rows are invalid.
    for num_invalid, num_rows, name in (
        (quarantine.lines - quarantine.unlabelled - reasons[NO_LABEL], total, "rows"),
        (quarantine.unlabelled, unlabelled, "unlabelled rows"),
    ):
        if num_invalid > spec.max_bad * num_rows:
            raise UserError(
                f"{num_invalid:,} of {num_rows:,} {name} are invalid, more than {percent(spec.max_bad)}",
                f"the first: {'; '.join(row for row in shown if not row.endswith(f': {NO_LABEL}'))}",
                f"{remedy}; or skip these rows with --max-bad {math.ceil(100 * num_invalid / num_rows) / 100:g}",
            )
    if damaged and spec.max_bad < 1:
        file, reason = next(iter(damaged.items()))
        more = f", and {len(damaged) - 1} more" if len(damaged) > 1 else ""
        raise UserError(
            f"{collected.sources[file].name}{more} cannot be read to its end: {reason}",
            f"{collected.files[file]['rows']:,} rows were read, and the number of lost rows is unknown",
            "get a complete copy of the file; or use the rows that were read with --max-bad 1",
        )
    first = ", ".join(repr(truncate_to_width(name, LABEL_WIDTH)) for name in classes[:5])
    if spec.classes is not None:
        if not (assignment == TEST).any():
            raise UserError(
                f"none of the {total:,} rows of {used} can be scored",
                f"the first classes of the model are {first}; the first rows: {'; '.join(shown)}",
                "give rows with these labels, or name the label column with --label",
            )
        return
    for code, split in enumerate(ALL_SPLITS):
        files = [source.name for source in collected.sources if source.split == split]
        if split != "train" and files and not (assignment == code).any():
            why = f"the files are {', '.join(files)[:200]}"
            if code == UNLABELLED:
                why += "; all their texts are invalid, or repeat labelled texts"
            raise UserError(
                f"the {split} files have no valid row",
                why,
                f"name other files with --{split}, or leave out these files",
            )
    is_text = len(classes) > MAX_CLASSES or (len(classes) > MAX_CLASS_FRACTION * labelled and labelled > MIN_ROWS)
    if is_text or len(classes) < 2:
        reads = collected.first_value("reads") or "label and text"
        raise UserError(
            f"{len(classes):,} different labels in {labelled:,} rows" if is_text else f"only {len(classes)} class",
            f"the columns are {truncate_to_width(reads, 200)}; the first labels are {first}",
            "name the label column with --label COLUMN, by name or by number (from 1)",
        )
