"""Parsing and checking of the rows of a batch, and hashing of their texts. Runs in workers."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from crepe_dist.data.arrays import hashes
from crepe_dist.data.composition import without_tags
from crepe_dist.data.dataset import UNLABELLED
from crepe_dist.data.targets import ONE
from crepe_dist.preparing.formats import BadRow, Batch, Parsed, Row, check_text, excerpt
from crepe_dist.preparing.labelling import ABSENT, Name
from crepe_dist.preparing.selection import SplitOptions
from crepe_dist.preparing.sources import Reading
from crepe_dist.preparing.spool import MAX_WEIGHT, ROW, Rows, append_texts

MAX_LABEL = 200  # characters
MAX_ID = 200  # characters; longer ones are cut
UNKNOWN_LABEL = "unknown label"  # reason, followed by the label
NO_LABEL = "no label"  # reason to leave out a row that is not counted as unusable: exports often contain such rows
_LOWER = bytes(range(256)).lower()
_NOT_ALPHANUMERIC = bytes(point for point in range(128) if not chr(point).isalnum())
_NOT_WORDS = re.compile(r"[\W_]+")


@dataclass(frozen=True)
class Rules:
    """Rules for all rows.

    Attributes:
        folder: folder of the spool.
    """

    folder: Path
    reading: Reading
    split: SplitOptions


Task = tuple[int, str, Callable[[Batch], Parsed], Batch]  # index and split of a source, and a batch with its parser


class BatchRows(NamedTuple):
    """Rows of a batch.

    Attributes:
        rows: records of the usable rows; their labels index ``labels``.
        good: number of usable rows of each label.
        file: index of the source.
        texts: file that holds the texts.
    """

    rows: Rows
    labels: list[str]
    good: list[int]
    bad: list[BadRow]
    file: int
    texts: Path


def read_batch(rules: Rules, task: Task) -> BatchRows:
    """Parse and check one batch, and append its texts to this process's file. Runs in a worker."""
    file, part, parse, batch = task
    parsed = parse(batch)
    bad = [*batch.bad, *parsed.bad]
    labels: dict[str, int] = {}
    rows: list[Row] = []
    texts: list[bytes] = []
    weights: list[float] = []
    name = partial(class_name, class_names=rules.reading.class_names)
    for row in parsed.rows:
        if rules.reading.strip_html:
            row = row._replace(text=without_tags(row.text))
        try:
            label, text = _checked(row, part, rules, name)
            weights.append(_weight(row))
        except ValueError as error:
            bad.append(BadRow(row.line, str(error), excerpt(row.text)))
        else:
            labels.setdefault(label, len(labels))
            rows.append(Row(row.line, label, row.text, id=row.id))
            texts.append(text)
    bad.sort(key=lambda row: row.line)
    records = np.zeros(len(rows), dtype=ROW)
    records["file"] = file
    records["line"] = [row.line for row in rows]
    records["label"] = [labels[row.label] for row in rows]
    records["weight"] = weights
    good = np.bincount(records["label"], minlength=len(labels)).tolist()
    ids = [row.id[:MAX_ID].encode("utf-8", "replace") for row in rows]
    records["id"] = list(map(len, ids))
    path, start = append_texts(rules.folder, [text + id_ for text, id_ in zip(texts, ids)])
    _describe(records, rows, texts, start)
    return BatchRows(records, list(labels), good, bad, file, path)


def _checked(row: Row, part: str, rules: Rules, name: Name) -> tuple[str, bytes]:
    """Return a row's label, or ``ABSENT``, and its text in UTF-8; raise ``ValueError`` if it is unusable."""
    text, cell = check_text(row.text), row.label.strip()
    if part == UNLABELLED or (part == "train" and rules.split.keep_unlabelled and not cell):
        return ABSENT, text
    labelling = rules.reading.labelling
    if labelling.kind == ONE or not cell:
        return name(cell), text
    return labelling.label(cell, name), text


def class_name(label: str, class_names: Sequence[str] | None) -> str:
    """Return the name of the class that a label means; raise ``ValueError`` if it is unusable."""
    label = label.strip()
    try:
        label.encode("utf-8")
    except UnicodeEncodeError:
        raise ValueError("not UTF-8") from None
    if not label:
        raise ValueError(NO_LABEL)
    if class_names is not None and (label.isdecimal() or label not in class_names):
        if not label.isdecimal() or not 1 <= int(label) <= len(class_names):
            raise ValueError(f"{UNKNOWN_LABEL}: {label!r:.40} is not a number from 1 to {len(class_names)}")
        return class_names[int(label) - 1]
    if len(label) > MAX_LABEL:
        raise ValueError(f"label longer than {MAX_LABEL} characters")
    return label


def _weight(row: Row) -> float:
    """Return a row's weight, 1 if rows have none; raise ``ValueError`` if it is unusable."""
    if row.weight is None:
        return 1.0
    try:
        weight = float(row.weight)
    except ValueError:
        weight = -1.0
    if not 0 <= weight <= MAX_WEIGHT:
        raise ValueError(f"unusable weight: {row.weight!r:.40} is not a number from 0 to {MAX_WEIGHT:g}")
    return weight


def _describe(records: Rows, rows: Sequence[Row], texts: Sequence[bytes], start: int) -> None:
    lengths = np.array([len(text) for text in texts], dtype=np.int64)
    records["bytes"] = lengths
    ends = start + np.cumsum(lengths + records["id"])
    records["offset"] = ends - lengths - records["id"]
    records["characters"] = [len(row.text) for row in rows]
    keys = [_letters(row.text, text) for row, text in zip(rows, texts)]
    records["exact"] = hashes(texts)
    records["near"] = hashes([key or text for key, text in zip(keys, texts)])


def _letters(text: str, data: bytes) -> bytes:
    """Reduce a text to its letters and digits in lower case and compatibility form, to find near duplicates."""
    if text.isascii():
        return data.translate(_LOWER, _NOT_ALPHANUMERIC)
    return _NOT_WORDS.sub("", unicodedata.normalize("NFKC", text).casefold()).encode("utf-8")
