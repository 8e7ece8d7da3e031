"""Functions that draw a run's pages; the command passes them, because training may not import reports."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from crepe_dist.data.dataset import Dataset
from crepe_dist.runs.metrics import DrawConfusion
from crepe_dist.runs.run_folder import RunFolder


@dataclass(frozen=True)
class Pages:
    """Functions that draw pages and pictures; ``None`` for those that are not wanted.

    Attributes:
        data: returns the report page of a data set, given its figures.
        confusion: draws a confusion matrix for TensorBoard.
        report: writes the report of a finished run and prints findings; yields every few seconds.
    """

    data: Callable[[dict[str, Any]], str] | None = None
    confusion: DrawConfusion | None = None
    report: Callable[[RunFolder, Dataset, Callable[[str], None]], Iterator[None]] | None = None
