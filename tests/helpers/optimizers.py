"""Optimizers in NumPy and float64, as the reference for the native kernels."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from crepe_dist.optim.parameter import Parameter
from crepe_dist.settings.options import OptimizerOptions

BETA1, BETA2, EPSILON = 0.8, 0.999, 1e-8


class Reference:
    """Adam (with one second moment for each row where a parameter has ``row_moments``), or SGD.

    Attributes:
        values: Current values by the name of the parameter.
    """

    def __init__(self, options: OptimizerOptions, parameters: Mapping[str, Parameter]) -> None:
        self._options = options
        self._parameters = dict(parameters)
        self._updates = 0
        self.values = {name: each.data.astype(float) for name, each in parameters.items()}
        self._first = {name: np.zeros(each.shape) for name, each in parameters.items()}
        self._second: dict[str, Any] = dict.fromkeys(parameters, 0.0)

    def update(self, gradients: Mapping[str, np.ndarray], learning_rate: float) -> None:
        """Update the values with mean gradients."""
        self._updates += 1
        for name, gradient in gradients.items():
            rate, value = learning_rate * self._parameters[name].lr_mult, self.values[name]
            decayed = gradient + self._options.weight_decay * value
            value += {"adam": self._adam, "sgd": self._sgd}[self._options.name](name, gradient, decayed, rate)

    def _adam(self, name: str, gradient: np.ndarray, decayed: np.ndarray, rate: float) -> np.ndarray:
        by_row = self._parameters[name].rowwise_second_moment
        squares = (gradient**2).mean(axis=1, keepdims=True) if by_row else decayed**2
        self._first[name] = first = BETA1 * self._first[name] + (1 - BETA1) * decayed
        self._second[name] = second = BETA2 * self._second[name] + (1 - BETA2) * squares
        correction = np.sqrt(1 - BETA2**self._updates) / (1 - BETA1**self._updates)
        return np.asarray(-rate * correction * first / (np.sqrt(second) + EPSILON))

    def _sgd(self, name: str, _gradient: np.ndarray, decayed: np.ndarray, rate: float) -> np.ndarray:
        self._first[name] = moment = self._options.momentum * self._first[name] - rate * decayed
        return moment
