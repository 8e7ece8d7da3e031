"""Description of a preparation, and the rows that reading found for it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from crepe_dist.data.alphabet import Encoding
from crepe_dist.preparing.auto_encoding import Fit
from crepe_dist.preparing.selection import SplitOptions
from crepe_dist.preparing.sources import Reading
from crepe_dist.preparing.spool import Rows, SomeRows


@dataclass(frozen=True)
class Job:
    """Description of a preparation.

    Args:
        sources: name and split of each source.
        reading: reading options, with the names of the labels 1 … C if a file gives them.
        encoding: encoding before fitting.
        max_bad: maximum fraction of unusable lines.
        classes: classes of the model that all rows are to score; ``None``: those of the training rows.
    """

    sources: tuple[tuple[str, str], ...]
    reading: Reading
    encoding: Encoding
    fit: Fit
    split: SplitOptions
    max_bad: float
    classes: tuple[str, ...] | None = None

    @property
    def merged(self) -> dict[str, str]:
        """Labels as read, and the classes that they become."""
        return dict(self.reading.labelling.merged)

    @property
    def labelled(self) -> str:
        """Labels of a row, one of ``targets.KINDS``."""
        return self.reading.labelling.kind


@dataclass(frozen=True)
class Collected:
    """Everything that was read.

    Args:
        rows: records in the order of (file, line).
        rows_path: file that ``rows`` is mapped from.
        labels: label names that the rows' labels index.
        good: usable rows of each label, including rows excluded by sampling while reading.
        files: format, row counts and checksum of each source, by index.
        bad_rows: records of unusable rows, in the order of (file, line).
        corrected: what corrections did, see ``corrections.correct``; ``None`` if there were none.
    """

    rows: Rows
    rows_path: Path
    texts: Sequence[Path]
    labels: list[str]
    good: Counter[str]
    files: dict[int, dict[str, Any]]
    bad_rows: Iterator[dict[str, Any]]
    bad: int
    corrected: dict[str, Any] | None = None

    def some(self, chosen: npt.NDArray[np.int64]) -> SomeRows:
        """Choose rows by their indices, int64 [n]."""
        return SomeRows(self.rows_path, tuple(self.texts), chosen)
