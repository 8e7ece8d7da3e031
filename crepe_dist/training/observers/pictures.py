"""Histograms of the parameters and confusion matrices of each epoch, for TensorBoard."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

from crepe_dist.distributed.control import Control, Wish
from crepe_dist.model import parameters
from crepe_dist.model.parameters import Network
from crepe_dist.runs.metrics import Metrics
from crepe_dist.runs.scores import Scores
from crepe_dist.training.observers.observer import Observer


@dataclass(eq=False)
class Pictures(Observer):
    """Observer that draws after each epoch, unless the run was asked to stop, which is more urgent."""

    metrics: Metrics
    network: Network
    classes: list[str]
    control: Control

    def after_epoch(self, record: dict[str, Any], scores: dict[str, Scores]) -> None:
        if self.control.wish is Wish.GO_ON:
            values = partial(parameters.values, self.network)
            self.metrics.pictures(record["step"], values, scores, self.classes)
