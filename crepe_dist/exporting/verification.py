"""Texts for the comparison of an export with our own engine: real ones from a test split, and synthetic ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from crepe_dist.data.alphabet import Encoding
from crepe_dist.data.dataset import open_dataset
from crepe_dist.errors import UserError
from crepe_dist.runs import checkpoint
from crepe_dist.runs.run_record import open_run

TEXTS = 100
STRANGE = "ÀéßİǅñЖλ語한\u0301\U0001f600\0"  # accented letters, other scripts, and characters outside every alphabet


def real(path: Path, data: Path | None) -> list[str]:
    """Pick evenly spaced texts of the test split; empty if the checkpoint's data set is not available.

    Args:
        data: prepared folder to use instead of the checkpoint's data set.

    Raises:
        UserError: ``data`` is not a prepared folder, or has no test split.
    """
    try:
        dataset = open_dataset(data or data_of(path))
        part = dataset.splits.get("test")
        if part is None or not len(part):
            raise UserError(f"{dataset.folder} has no test split", remedy="name another data set with --data")
    except UserError:
        if data is not None:
            raise
        return []
    rows = np.linspace(0, len(part) - 1, min(TEXTS, len(part))).astype(int).tolist()
    return [dataset.text("test", row) for row in rows]


def data_of(path: Path) -> Path:
    """Return the data set of the run that a checkpoint is from."""
    if path.parent.name != checkpoint.FOLDER:
        raise UserError(f"{path} is not in the folder of a run", remedy="name the data set with --data")
    return open_run(path.parent.parent, path).data_folder


def synthetic(encoding: Encoding) -> list[str]:
    """Make random texts of known and unknown characters, up to twice as long as the network reads."""
    generator = np.random.default_rng(0)
    rare = generator.permutation([*encoding.paired])[: len(encoding.alphabet)]
    characters = np.array([*encoding.alphabet, *rare, *STRANGE])
    longest = 2 * encoding.feature_len
    lengths = [0, 1, longest, *generator.integers(2, longest + 1, TEXTS - 4).tolist()]
    return [STRANGE[-1] * 9, *("".join(generator.choice(characters, length)) for length in lengths)]
