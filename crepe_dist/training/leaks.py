"""Rows that are scored, but on which the parameters of ``training.init_from`` were already trained."""

from __future__ import annotations

import numpy as np

from crepe_dist.data.dataset import Dataset
from crepe_dist.data.origins import HASH
from crepe_dist.errors import UserError
from crepe_dist.runs import checkpoint
from crepe_dist.runs.run_record import open_run
from crepe_dist.wording import counted, listed, number, visible

DO = "prepare both data sets from the same sources with the same --seed, --test and --validation"


def leaked_rows(given: str, data: Dataset) -> str:
    """Compare scored rows with the training rows of the run that is the start, by hashes of their texts.

    Args:
        given: value of ``training.init_from``.

    Returns:
        A note; empty if there is nothing to say.
    """
    path = checkpoint.find(given).absolute()
    try:
        record = open_run(path.parent.parent, path)
    except UserError:  # parameters without a run: nothing is known about their data
        return ""
    if record.fingerprint == data.fingerprint:
        return ""
    try:
        trained = record.dataset(None).splits["train"].origins[:, HASH]
    except UserError as error:
        what = f"whether {visible(given)} was trained on rows that are scored here is unknown: {error.what}"
        return f"note: {what}\n  do:  {DO}"
    scored = {split: part.origins[:, HASH] for split, part in data.splits.items() if split != "train"}
    counts = {split: int(np.isin(hashes, trained).sum()) for split, hashes in scored.items()}
    leaked = [
        f"{number(count)} of {counted(len(scored[split]), f'{split} row')}" for split, count in counts.items() if count
    ]
    if not leaked:
        return ""
    return f"note: {visible(given)} was trained on {listed(leaked)}, so their scores are too high\n  do:  {DO}"
