"""Rows that are scored, but on which the parameters of ``training.init_from`` were already trained."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from crepe_dist.data.dataset import Dataset, Part
from crepe_dist.errors import UserError
from crepe_dist.runs import checkpoint
from crepe_dist.runs.run_record import open_run
from crepe_dist.wording import counted, listed, number, visible

AT_ONCE = 4096  # rows
DO = "prepare both data sets from the same sources with the same --seed, --test and --validation"


def leaked_rows(given: str, data: Dataset) -> Iterator[str]:
    """Compare the scored rows of the data with the training rows of the run that is the start, by their codes.

    Args:
        given: value of ``training.init_from``.

    Yields:
        Nothing of interest, every few thousand rows; then a note, empty if there is nothing to say.
    """
    path = checkpoint.find(given).absolute()
    try:
        record = open_run(path.parent.parent, path)
    except UserError:  # parameters without a run: nothing is known about their data
        return
    if record.fingerprint == data.fingerprint:
        return
    name, what = visible(given), ""
    try:
        before = record.dataset(None)
    except UserError as error:
        what = f"whether {name} was trained on rows that are scored here is unknown: {error.what}"
    else:
        if before.encoding.feature_len != data.encoding.feature_len:
            if _sources(before) & _sources(data):
                what = f"{name} was trained on rows of the same files, perhaps on some that are scored here"
        else:
            scored = {split: part for split, part in data.parts.items() if split != "train"}
            known = {row for part in scored.values() for row in _hashes(part)}
            trained: set[int] = set()
            for row in _hashes(before.parts["train"]):
                if row in known:
                    trained.add(row)
                yield ""
            counts = {split: sum(row in trained for row in _hashes(part)) for split, part in scored.items()}
            leaked = [
                f"{number(count)} of {counted(len(scored[split]), f'{split} row')}"
                for split, count in counts.items()
                if count
            ]
            what = f"{name} was trained on {listed(leaked)}, so their scores are too high" if leaked else ""
    yield f"note: {what}\n  do:  {DO}" if what else ""


def _hashes(part: Part) -> Iterator[int]:
    for start in range(0, len(part), AT_ONCE):
        for codes in part.codes(np.arange(start, min(start + AT_ONCE, len(part)))):
            yield hash(codes.tobytes())


def _sources(data: Dataset) -> set[str]:
    return {str(source.get("sha256")) for source in data.manifest.get("sources", [])} - {"None"}
