"""Quarantine: the unusable rows of a preparation, each with its reason."""

from __future__ import annotations

import heapq
import json
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from crepe_dist.data.dataset import QUARANTINE, UNLABELLED
from crepe_dist.files import sync
from crepe_dist.preparing.checking import NO_LABEL, UNKNOWN_LABEL
from crepe_dist.preparing.formats.lines import ENDS_EARLY
from crepe_dist.preparing.formats.rows import excerpt
from crepe_dist.preparing.job import Collected, Job
from crepe_dist.preparing.labelling import names_of
from crepe_dist.preparing.selection import UNKNOWN, Fate
from crepe_dist.preparing.spool import Texts

SHOWN = 5


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
    first: list[dict[str, Any]]
    damaged: dict[int, str]

    @property
    def lines(self) -> int:
        """Number of unusable lines."""
        return sum(self.reasons.values())


def write_quarantine(folder: Path, job: Job, collected: Collected, fate: Fate) -> Quarantine:
    """Write all unusable rows in the order of the sources."""
    reasons: Counter[str] = Counter()
    of_unlabelled = 0
    damaged: dict[int, str] = {}
    first: list[dict[str, Any]] = []
    left_out: list[dict[str, Any]] = []
    unknown = _unknown_labels(job, collected, fate)
    everything = heapq.merge(collected.bad_rows, unknown, key=lambda record: (record["source"], record["line"]))
    with (folder / QUARANTINE).open("w", encoding="utf-8") as stream:
        for record in everything:
            source = record.pop("source")
            if record["reason"].startswith(ENDS_EARLY):
                damaged[source] = record["reason"]
            stream.write(json.dumps(record, ensure_ascii=False) + "\n")
            reasons[record["reason"].split(":")[0]] += record["lines"]
            of_unlabelled += record["lines"] * (job.sources[source][1] == UNLABELLED)
            kept = left_out if record["reason"] == NO_LABEL else first
            kept += [record] if len(kept) < SHOWN else []
    sync(folder / QUARANTINE)
    return Quarantine(reasons, of_unlabelled, [*first, *left_out][:SHOWN], damaged)


def _unknown_labels(job: Job, collected: Collected, fate: Fate) -> Iterator[dict[str, Any]]:
    of = "in the training rows" if job.classes is None else "a class of the model"
    texts = Texts(collected.texts)
    for index in np.flatnonzero(fate == UNKNOWN).tolist():
        row = collected.rows[index : index + 1]
        file, label = int(row["file"][0]), collected.labels[int(row["label"][0])]
        label = ", ".join(names_of(label, job.labelled))
        yield {
            "file": job.sources[file][0],
            "source": file,
            "line": int(row["line"][0]),
            "reason": f"{UNKNOWN_LABEL}: {label!r:.40} is not {of}",
            "excerpt": excerpt(texts.get(row)[0]),
            "lines": 1,
        }


def keep_quarantine(folder: Path, out: Path) -> Path | None:
    """Save the quarantine of a failed preparation beside ``out``, under a name that is not read as data later."""
    if not (folder / QUARANTINE).is_file() or (folder / QUARANTINE).stat().st_size == 0:
        return None
    kept = quarantine_beside(out)
    shutil.copyfile(folder / QUARANTINE, kept)
    return kept


def quarantine_beside(out: Path) -> Path:
    """Return the path of the quarantine that a failed preparation leaves beside ``out``."""
    return out.with_name(f"{out.name}.quarantine")
