"""Description of a preparation, and the rows that reading found for it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import numpy.typing as npt

from crepe_dist.data.alphabet import Encoding
from crepe_dist.data.dataset import PARTS
from crepe_dist.files import finite
from crepe_dist.preparing.auto_encoding import Alphabet, Fit
from crepe_dist.preparing.selection import SplitOptions
from crepe_dist.preparing.sources import Reading
from crepe_dist.preparing.spool import Rows, SomeRows


@dataclass(frozen=True)
class Job:
    """Description of a preparation, equal for all its parts.

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

    def to_dict(self) -> dict[str, Any]:
        """Return the job as JSON-like data, with lists in place of tuples."""
        about = {**asdict(self), "encoding": self.encoding.to_dict()}
        return dict(json.loads(json.dumps(about)))

    @classmethod
    def from_dict(cls, saved: dict[str, Any]) -> Job:
        """Restore a job from ``to_dict``'s result.

        Raises:
            UserError: The encoding or the split is invalid.
            AttributeError, KeyError, TypeError, ValueError: ``saved`` was not made by ``to_dict``.
        """
        names = [name for source in saved["sources"] for name in source]
        if not all(isinstance(name, str) for name in names) or not {part for _, part in saved["sources"]} <= set(PARTS):
            raise ValueError("the names of sources are invalid")
        usual = asdict(SplitOptions())
        for name, value in saved["split"].items():
            kind = int if name == "max_per_class" and value is not None else type(usual[name])
            if type(value) is not kind and not (kind is float and value == 0) and (name, value) != ("validation", None):
                raise ValueError(f"{name} of the split is {str(value)[:40]}")
        fitted = saved["fit"]
        if not type(fitted["length"]) is type(fitted["folds"]) is bool or fitted["alphabet"] not in get_args(Alphabet):
            raise ValueError(f"fit is {str(fitted)[:80]}")
        return cls(
            tuple((name, part) for name, part in saved["sources"]),
            Reading.from_dict(saved["reading"]),
            Encoding.from_dict(saved["encoding"]),
            Fit(**fitted),
            SplitOptions(**saved["split"]),
            finite(saved["max_bad"], 0, 1, "max_bad"),
        )


@dataclass(frozen=True)
class Collected:
    """Everything read, from a single spool or from merged parts.

    Args:
        rows: records in the order of (file, line).
        rows_path: file that ``rows`` is mapped from.
        labels: label names that the rows' labels index.
        good: usable rows of each label, including rows excluded by sampling while reading.
        files: format, row counts and checksum of each source, by index.
        bad_rows: records of unusable rows of each part, in the order of (file, line).
        corrected: what corrections did, see ``corrections.correct``; ``None`` if there were none.
    """

    rows: Rows
    rows_path: Path
    texts: Sequence[Path]
    labels: list[str]
    good: Counter[str]
    files: dict[int, dict[str, Any]]
    bad_rows: Sequence[Iterator[dict[str, Any]]]
    bad: int
    corrected: dict[str, Any] | None = None

    def some(self, chosen: npt.NDArray[np.int64]) -> SomeRows:
        """Choose rows by their indices, int64 [n]."""
        return SomeRows(self.rows_path, tuple(self.texts), chosen)
