"""Histograms of the parameters and confusion matrices of each epoch, for TensorBoard."""

from __future__ import annotations

from functools import partial
from typing import Any

from crepe_dist.distributed.control import Control, Wish
from crepe_dist.model import parameters
from crepe_dist.model.parameters import Network
from crepe_dist.runs.metrics import Metrics
from crepe_dist.runs.scores import Scores
from crepe_dist.training.observers.observer import Observer


class Pictures(Observer):
    """Draws after each epoch, unless the run was asked to stop, which is more urgent."""

    def __init__(self, metrics: Metrics, network: Network, classes: list[str], control: Control) -> None:
        self._metrics = metrics
        self._network = network
        self._classes = classes
        self._control = control

    def after_epoch(self, record: dict[str, Any], scores: dict[str, Scores]) -> None:
        if self._control.wish is Wish.GO_ON:
            values = partial(parameters.values, self._network)
            self._metrics.pictures(record["step"], values, scores, self._classes)
