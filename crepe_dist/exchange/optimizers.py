"""Optimizers: MXNet's operators for floating-point gradients, our own kernels for whole numbers.

Our kernels pass over the memory once. MXNet's operators take several passes: for 11 million parameters on two cores
Adam takes six times as long, SGD three times. State and constants are the same, so a run may change from one to the
other.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Mapping
from typing import Any

import mxnet as mx


class Rule:
    """Constants of an optimizer, as the kernels take them.

    Attributes:
        number: number of the rule in ``native/optimizer.h``.
        decays: Adam's beta1 and beta2; momentum and 0.
        constants: C array of the decays and epsilon.
        moments: number of moments; without momentum, SGD has none.
        weight_decay: weight decay.
    """

    def __init__(self, optimizer: mx.optimizer.Optimizer) -> None:
        kinds = (mx.optimizer.Adam, mx.optimizer.SGD, mx.optimizer.NAG)
        self.number = next(number for number, kind in enumerate(kinds) if isinstance(optimizer, kind))
        is_adam = self.number == 0
        self.decays = (optimizer.beta1, optimizer.beta2) if is_adam else (optimizer.momentum, 0.0)
        self.constants = (ctypes.c_double * 3)(*self.decays, optimizer.epsilon if is_adam else 0.0)
        self.moments = 2 if is_adam else int(optimizer.momentum != 0)
        self.weight_decay = optimizer.wd

    def rate(self, learning_rate: float, updates: int) -> float:
        """Correct the learning rate for the bias of Adam's moments at its update number ``updates``, from 1."""
        if self.number != 0:
            return learning_rate
        first, second = (1 - decay**updates for decay in self.decays)
        return float(learning_rate * math.sqrt(second) / first)

    def moment_shapes(self, parameter: Any) -> list[tuple[int, ...]]:
        """Return the shapes of the moments of a Gluon parameter."""
        shapes = [tuple(parameter.shape)] * self.moments
        if self.moments == 2 and has_row_moments(parameter):
            shapes[1] = (parameter.shape[0], 1)
        return shapes


def has_row_moments(parameter: Any) -> bool:
    """Tell whether Adam keeps one second moment for each row of a Gluon parameter, see ``RowAdam``."""
    return getattr(parameter, "row_moments", False)


class RowAdam(mx.optimizer.Adam):
    """MXNet's Adam, with a second moment for each row instead of each number of parameters with ``row_moments``.

    It averages the mean square of the row's gradient, without weight decay.
    """

    def create_state(self, index: int, weight: Any) -> tuple[Any, ...]:
        if not has_row_moments(self.param_dict.get(index)):
            state: tuple[Any, ...] = super().create_state(index, weight)
            return state
        return weight.zeros_like(), mx.nd.zeros((weight.shape[0], 1), ctx=weight.context)

    def update(self, index: int, weight: Any, grad: Any, state: Any) -> None:
        if not has_row_moments(self.param_dict.get(index)):
            super().update(index, weight, grad, state)
            return
        self._update_count(index)
        rate = Rule(self).rate(self._get_lr(index), self._index_update_count[index])
        first, second = state
        grad = grad * self.rescale_grad
        squares = grad.square().mean(axis=1, keepdims=True)
        grad += self._get_wd(index) * weight
        first[:] = self.beta1 * first + (1 - self.beta1) * grad
        second[:] = self.beta2 * second + (1 - self.beta2) * squares
        weight -= rate * first / (second.sqrt() + self.epsilon)


KINDS = {"adam": RowAdam, "sgd": mx.optimizer.SGD, "nag": mx.optimizer.NAG}


def make_optimizer(name: str, settings: Mapping[str, float]) -> mx.optimizer.Optimizer:
    """Make the optimizer ``name``: adam, sgd or nag."""
    return KINDS[name](**settings)
