"""Texts on which an export is tried: of the data that a run was trained on, or made up."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from crepe_dist.data.alphabet import Encoding
from crepe_dist.data.dataset import open_dataset
from crepe_dist.errors import UserError
from crepe_dist.runs import checkpoint
from crepe_dist.runs.run_record import open_run, texts

TEXTS = 100
STRANGE = "ÀéßİǅñЖλ語한\u0301\U0001f600\0"  # letters with accents, of other scripts, and what no alphabet has


def real(path: Path, data: Path | None) -> list[str]:
    """Texts of the test part, evenly spread; none where the data that a checkpoint was trained on are not at hand.

    Args:
        path: the .params file.
        data: a prepared folder to take instead.

    Raises:
        UserError: ``data`` is none, or has no test part.
    """
    try:
        dataset = open_dataset(data or _data_of(path))
        part = dataset.parts.get("test")
        if part is None or not len(part):
            raise UserError(f"{dataset.folder} has no test part", remedy="name other data with --data")
    except UserError:
        if data is not None:
            raise
        return []
    rows = np.linspace(0, len(part) - 1, min(TEXTS, len(part))).astype(int).tolist()
    return [text for text in texts(part, rows, dataset.encoding) if text is not None]


def _data_of(path: Path) -> Path:
    if path.parent.name != checkpoint.FOLDER:
        raise UserError(f"{path} is not in a run's folder", remedy="name the data with --data")
    return open_run(path.parent.parent).data_folder


def made_up(encoding: Encoding) -> list[str]:
    """Characters of the alphabet and some others, in texts up to twice as long as is read; the first is empty."""
    generator = np.random.default_rng(0)
    characters = np.array([*encoding.alphabet, *STRANGE])
    longest = 2 * encoding.feature_len
    lengths = [0, 1, longest, *generator.integers(2, longest + 1, TEXTS - 4).tolist()]
    return [STRANGE[-1] * 9, *("".join(generator.choice(characters, length)) for length in lengths)]
