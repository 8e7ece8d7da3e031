"""Pages and pictures that a run has drawn: given to it by the command, since training does not know reports."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from crepe_dist.data.dataset import Dataset
from crepe_dist.runs.metrics import DrawConfusion
from crepe_dist.runs.run_folder import RunFolder


@dataclass(frozen=True)
class Pages:
    """Functions that draw; ``None`` for a page that is not wanted.

    Attributes:
        data: makes the page of a data set from its numbers.
        confusion: draws a confusion matrix for TensorBoard.
        report: writes the report of a finished run and tells what deserves a second look; yields every few seconds.
    """

    data: Callable[[dict[str, Any]], str] | None = None
    confusion: DrawConfusion | None = None
    report: Callable[[RunFolder, Dataset, Callable[[str], None]], Iterator[None]] | None = None
