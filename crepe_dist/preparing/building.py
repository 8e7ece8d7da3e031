"""Building of a data set folder from a spool: selects rows, encodes them, and writes the shards and the manifest."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from crepe_dist.data.alphabet import Encoding
from crepe_dist.data.arrays import IDS, ORIGIN_COLUMNS, TEXTS, Files, origins_file, write_array, write_pieces
from crepe_dist.data.composition import Composition
from crepe_dist.data.dataset import ALL_SPLITS, KEEP_TEXTS, LARGEST_WEIGHT, WEIGHTS, write_manifest
from crepe_dist.data.targets import ONE, Targets, described, main_classes, targets_file
from crepe_dist.errors import UserError
from crepe_dist.files import sync
from crepe_dist.preparing.auto_encoding import fit
from crepe_dist.preparing.checking import NO_LABEL, UNKNOWN_LABEL
from crepe_dist.preparing.formats.rows import FROM_WINDOWS
from crepe_dist.preparing.job import Collected, Job
from crepe_dist.preparing.labelling import ABSENT, MANY, classes_of, names_of, pairs_of
from crepe_dist.preparing.pool import Workers
from crepe_dist.preparing.progress import Progress, Show
from crepe_dist.preparing.quarantine import Quarantine, write_quarantine
from crepe_dist.preparing.reading import MAX_CLASSES
from crepe_dist.preparing.selection import PIECE, TEST, TRAIN, UNLABELLED, Fate, decide, used_labels
from crepe_dist.preparing.shards import TextCounts, write_shards
from crepe_dist.wording import cut, percent

# If MIN_ROWS rows or more have more distinct labels than this fraction of them, another column must be the label.
MAX_CLASS_FRACTION, MIN_ROWS = 0.5, 40
REMEDIES = {
    "unusable weight": "give every row a number from 0 as its weight",
    MANY: "give --labels several, or keep one label per row",
    "not a single value": "give --labels soft for shares of classes, --labels several for a list, or name a key in it",
    "unusable label": "write 1 in the column of each class of a row, and 0 in the others",
    "unusable share": "give every row a share from 0 for each class, and at least one above 0",
    "not UTF-8": FROM_WINDOWS,
    "empty text": "fill in or remove the rows without text",
    UNKNOWN_LABEL: "use only labels that occur in the training rows (or in classes.txt)",
    "not CSV": "double the quotes inside quoted fields",
}
FILE_NAME = "file name"  # id of a row that is a file of a folder
LABEL_WIDTH = 40  # terminal columns of a label in a message


@dataclass(frozen=True)
class Built:
    """Result of building a data set, for its report.

    Attributes:
        encoding: encoding after fitting.
        classes: class names in the order of their labels.
        fate: fate of each row, uint8 [n]; see ``selection``.
        targets: classes of each row with their shares; without meaning for rows in no split.
        counts: counts of the texts that are kept.
    """

    encoding: Encoding
    classes: list[str]
    fate: Fate
    targets: Targets
    counts: TextCounts
    quarantine: Quarantine
    rows: dict[str, int]


def build(folder: Path, job: Job, collected: Collected, workers: Workers, show: Show) -> Built:
    """Write a data set into an existing folder, except for its report.

    Args:
        show: function that is called with the progress.

    Raises:
        UserError: Too many rows are unusable, there are fewer than two classes, or nothing is left to train on.
    """
    fixed_of = np.array([ALL_SPLITS.index(part) for _, part in job.sources], dtype=np.uint8)
    with_files = {part for _, part in job.sources}
    shares: dict[str, Any] = {part: 0.0 for part in ("test", "validation") if part in with_files}
    fixed = fixed_of[collected.rows["file"]]
    if ABSENT in collected.labels:
        fixed[collected.rows["label"] == collected.labels.index(ABSENT)] = UNLABELLED
    used = used_labels(collected.rows, fixed)
    trained = [collected.labels[index] for index in np.flatnonzero(used).tolist()]
    names = classes_of(trained, job.labelled) if job.classes is None else set(job.classes)
    usable = np.array([names.issuperset(names_of(label, job.labelled)) for label in collected.labels], np.bool_)
    fate = decide(collected.rows, fixed, replace(job.split, **shares), usable)
    class_names = job.reading.class_names
    classes = sorted(names, key=_label_order) if class_names is None else _renamed(class_names, job)
    classes = classes if job.classes is None else list(job.classes)
    quarantine = write_quarantine(folder, job, collected, fate)
    _check(job, collected, fate, classes, quarantine)
    number = {label: index for index, label in enumerate(classes)}
    labels, targets = _labels(job.labelled, collected, number)
    training = np.flatnonzero(fate == TRAIN)
    if len(training) == 0 and job.classes is None:
        raise UserError(
            f"none of {_read(collected):,} rows is left to train on",
            remedy="give more rows, or smaller --test and --validation",
        )
    texts = collected.some(np.flatnonzero((fate == TRAIN) | (fate == UNLABELLED)))
    encoding = fit(job.encoding, job.fit, texts, workers, show) if len(texts) else job.encoding
    id_name = (job.reading.columns.id or FILE_NAME) if collected.rows["id"].any() else None
    parts: dict[str, dict[str, Any]] = {}
    counts = TextCounts()
    for code, part in enumerate(ALL_SPLITS):
        chosen = np.flatnonzero(fate == code)
        if len(chosen) == 0:
            continue
        files = _write_origins(folder, part, collected, chosen)
        if code != UNLABELLED:
            files |= write_array(folder, f"{part}.labels.npy", labels[chosen])
        if code != UNLABELLED and targets.kind != ONE:
            files |= write_array(folder, targets_file(part), targets.stored[chosen])
        if part == "train" and job.reading.columns.weight is not None:
            files |= write_array(folder, WEIGHTS, _relative(collected.rows["weight"][chosen]))
        sizes = []
        kinds = (TEXTS,) * (part in KEEP_TEXTS) + (IDS,) * (id_name is not None)
        of_part = collected.some(chosen)
        for shard_files, shard_counts in write_shards(folder, part, of_part, encoding, kinds, workers):
            files |= shard_files
            counts.add(shard_counts)
            sizes.append(shard_counts.rows)
            show(Progress("encoding", counts.rows, len(collected.rows)))
        parts[part] = {"rows": len(chosen), "shards": sizes, "files": files}
    columns = next((about["texts"] for _, about in sorted(collected.files.items()) if about["texts"]), ())
    label = next((about["label"] for _, about in sorted(collected.files.items()) if about["label"]), None)
    given = job.reading.columns
    wanted = replace(given, label=given.label or label, needs_label=given.label is not None)
    manifest = {
        "encoding": encoding.to_dict(),
        "composition": Composition(tuple(columns), job.reading.strip_html).to_dict(),
        "reading": asdict(replace(job.reading, columns=wanted)),
        "classes": classes,
        "parts": parts,
        "split": asdict(job.split),
        "sources": [
            {"file": name, "part": part, "sha256": collected.files[file]["sha256"]}
            for file, (name, part) in enumerate(job.sources)
        ],
        "bad_rows": quarantine.lines,
        "id": id_name,
    }
    if collected.corrected is not None:
        manifest["corrections"] = collected.corrected
    if targets.kind != ONE:
        manifest["labels"] = described(targets.kind, targets.most)
    write_manifest(folder, manifest)
    sync(folder)
    rows = {part: about["rows"] for part, about in parts.items()}
    return Built(encoding, classes, fate, targets, counts, quarantine, rows)


def _write_origins(folder: Path, part: str, collected: Collected, chosen: npt.NDArray[np.int64]) -> Files:
    """Write where the rows of a split are from; see ``data/arrays``."""

    def pieces() -> Iterator[npt.NDArray[np.uint64]]:
        for start in range(0, len(chosen), PIECE):
            rows = collected.rows[chosen[start : start + PIECE]]
            yield np.stack([rows[name].astype(np.uint64) for name in ("file", "line", "exact")], axis=1)

    return write_pieces(folder, origins_file(part), np.uint64, (len(chosen), ORIGIN_COLUMNS), pieces())


def _renamed(names: Sequence[str], job: Job) -> list[str]:
    return list(dict.fromkeys(job.merged.get(name, name) for name in names))


def _labels(kind: str, collected: Collected, number: dict[str, int]) -> tuple[npt.NDArray[np.int32], Targets]:
    """Return the first or most probable class of each row, and its targets."""
    if kind == ONE:
        relabel = np.array([number.get(label, -1) for label in collected.labels], dtype=np.int32)
        labels = relabel[collected.rows["label"]]
        return labels, Targets(ONE, labels, len(number))
    pairs = pairs_of(collected.labels, number)
    label = collected.rows["label"]
    return main_classes(pairs)[label], Targets(kind, pairs[label], len(number))


def _relative(weights: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Divide weights by their mean, so that they change neither the loss nor the meaning of the learning rate."""
    mean = weights.mean(dtype=np.float64)
    if mean == 0:
        raise UserError("all weights are 0", remedy="give at least some rows a weight above 0, or leave --weight out")
    if weights.max() > LARGEST_WEIGHT * mean:
        raise UserError(
            f"the weight {weights.max():g} is more than {LARGEST_WEIGHT:g} times the mean, {mean:g}",
            "a few rows would dominate training",
            "cap the weights, or repeat or leave out rows",
        )
    return np.asarray(weights / mean, dtype=np.float32)


def _read(collected: Collected) -> int:
    """Return the number of rows that were read."""
    return sum(collected.good.values()) + collected.bad


def _check(job: Job, collected: Collected, fate: Fate, classes: list[str], quarantine: Quarantine) -> None:
    """Raise ``UserError`` if too many rows are unusable, or the labels are no classes."""
    reasons, damaged = quarantine.reasons, quarantine.damaged
    labelled = sum(count for label, count in collected.good.items() if label != ABSENT)
    unlabelled = collected.good[ABSENT] + quarantine.unlabelled
    total = _read(collected) - unlabelled
    shown = [f"{bad['file']}:{bad['line']}: {bad['reason']}" for bad in quarantine.first]
    remedy = REMEDIES.get(
        max(reasons, key=lambda reason: reasons[reason], default=""),
        "correct them, or set --input-format, --header, --label or --text to read them differently",
    )
    used = ", ".join(name for name, part in job.sources if part == ("train" if job.classes is None else "test"))[:200]
    if not labelled:
        why = f"the first: {'; '.join(shown)}" if shown else "it has no rows, or only a header"
        raise UserError(f"no usable row was found in {used}", why, remedy)
    # Many texts without labels may not hide that most of the others are unusable.
    for bad, of, rows in (
        (quarantine.lines - quarantine.unlabelled - reasons[NO_LABEL], total, "rows"),
        (quarantine.unlabelled, unlabelled, "unlabelled rows"),
    ):
        if bad > job.max_bad * of:
            raise UserError(
                f"{bad:,} of {of:,} {rows} are unusable, more than {percent(job.max_bad)}",
                f"the first: {'; '.join(each for each in shown if not each.endswith(f': {NO_LABEL}'))}",
                f"{remedy}; or skip them with --max-bad {math.ceil(100 * bad / of) / 100:g}",
            )
    if damaged and job.max_bad < 1:
        file, reason = next(iter(damaged.items()))
        more = f", and {len(damaged) - 1} more" if len(damaged) > 1 else ""
        raise UserError(
            f"{job.sources[file][0]}{more} cannot be read to its end: {reason}",
            f"{collected.files[file]['rows']:,} of its rows were read; the rest is lost and cannot be counted",
            "get the file again; or use the rows that were read: --max-bad 1",
        )
    first = ", ".join(repr(cut(name, LABEL_WIDTH)) for name in classes[:5])
    if job.classes is not None:
        if not (fate == TEST).any():
            raise UserError(
                f"none of the {total:,} rows of {used} can be scored",
                f"the first classes of the model are {first}; the first rows: {'; '.join(shown)}",
                "give rows with these labels, or name the column of the label with --label",
            )
        return
    for code, part in enumerate(ALL_SPLITS):
        files = [name for name, each in job.sources if each == part]
        if part != "train" and files and not (fate == code).any():
            where = f"the files of the {part} split"
            if code == UNLABELLED:
                where = "the unlabelled files, or all are among the labelled rows"
            raise UserError(
                f"no usable row was found in {where}",
                ", ".join(files)[:200],
                f"name other files with --{part}, or leave them out",
            )
    is_text = len(classes) > MAX_CLASSES or (len(classes) > MAX_CLASS_FRACTION * labelled and labelled > MIN_ROWS)
    if is_text or len(classes) < 2:
        reads = next((about["reads"] for about in collected.files.values() if about["reads"]), "label and text")
        raise UserError(
            f"{len(classes):,} different labels in {labelled:,} rows" if is_text else f"only {len(classes)} class",
            f"read as {cut(reads, 200)}; the first labels: {first}",
            "name the column of the label: --label and --text take names or numbers (--label 3 --text 2); use "
            "--header yes if the first line has names",
        )


def _label_order(label: str) -> tuple[int, float, str]:
    """Sort key: numbers by value, then other labels alphabetically."""
    return (0, float(label), label) if label.isdecimal() else (1, 0.0, label)
