"""Histograms of the parameters and confusion matrices of each epoch, for TensorBoard."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from crepe_dist.distributed.control import Control, Wish
from crepe_dist.runs.checkpoint import AnyScores
from crepe_dist.runs.scores import Scores
from crepe_dist.training.observers.observer import Observer
from crepe_dist.training.run import Run

SHARE = 0.1  # of the time since the last pictures, which drawing may take
FIRST_SECONDS = 3.0  # of the first pictures, with the imports that they need


@dataclass(eq=False)
class Pictures(Observer):
    """Observer that draws after the last epoch, and after others if it takes little of their time.

    It does not draw in a run that was asked to stop, which is more urgent.
    """

    run: Run
    control: Control
    _drawn: float = field(default_factory=time.monotonic, init=False)
    _took: float = field(default=FIRST_SECONDS, init=False)

    def after_epoch(self, record: dict[str, Any], scores: Mapping[str, AnyScores]) -> None:
        now = time.monotonic()
        is_cheap = self._took <= SHARE * (now - self._drawn)
        if self.control.wish is Wish.GO_ON and (is_cheap or self.run.progress.finished):
            values = self.run.engine.values
            one_class = {split: score for split, score in scores.items() if isinstance(score, Scores)}
            self.run.metrics.pictures(record["step"], values, one_class, self.run.data.classes)
            self._drawn = time.monotonic()
            self._took = self._drawn - now
