"""Heartbeats of the training loop for the watchdog."""

from __future__ import annotations

from typing import Any

from crepe_dist.data.batch import Batch
from crepe_dist.distributed.watchdog import SHOWN_ROWS, Watchdog
from crepe_dist.runs.state import Progress
from crepe_dist.training.observers.observer import Observer


class Heartbeat(Observer):
    """Observer that reports each step to the watchdog, and the position of the run in case of a hang."""

    def __init__(self, watchdog: Watchdog, progress: Progress) -> None:
        self._watchdog = watchdog
        self._progress = progress
        self._rows: list[int] = []
        watchdog.locate(self._where)

    def before_step(self, batch: Batch) -> None:
        self._watchdog.beat("train")
        self._rows = batch.rows[:SHOWN_ROWS].tolist()

    def begin_evaluation(self) -> None:
        self._watchdog.beat("evaluate")

    def _where(self) -> dict[str, Any]:
        at = self._progress
        return {"step": at.step, "epoch": at.epoch, "documents": at.documents, "rows": self._rows}
