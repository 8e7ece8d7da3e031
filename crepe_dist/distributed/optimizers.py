"""MXNet's optimizers with our own kernels, which pass over the memory once.

MXNet's operators take several passes: for 11 million parameters on two cores Adam takes six times as long, SGD three
times. State and constants are those of MXNet, so a run may change from one to the other.
"""

from __future__ import annotations

import ctypes
import math
from typing import Any

import mxnet as mx

from crepe_dist.errors import UserError
from crepe_dist.mxnet_internals import pointer
from crepe_dist.native import library


class Rule:
    """Constants of an optimizer, as the kernels take them.

    Attributes:
        number: number of the rule in ``native/optimizer.h``.
        decays: Adam's beta1 and beta2; momentum and 0.
        constants: C array of the decays and epsilon.
        moments: number of moments for each parameter.
    """

    def __init__(self, optimizer: mx.optimizer.Optimizer) -> None:
        kinds = (mx.optimizer.Adam, mx.optimizer.SGD, mx.optimizer.NAG)
        self.number = next(number for number, kind in enumerate(kinds) if isinstance(optimizer, kind))
        is_adam = self.number == 0
        self.decays = (optimizer.beta1, optimizer.beta2) if is_adam else (optimizer.momentum, 0.0)
        self.constants = (ctypes.c_double * 3)(*self.decays, optimizer.epsilon if is_adam else 0.0)
        self.moments = 2 if is_adam else 1

    def rate(self, learning_rate: float, updates: int) -> float:
        """Correct the learning rate for the bias of Adam's moments at its update number ``updates``, from 1."""
        if self.moments == 1:
            return learning_rate
        first, second = (1 - decay**updates for decay in self.decays)
        return float(learning_rate * math.sqrt(second) / first)


def has_row_moments(parameter: Any) -> bool:
    """Tell whether Adam keeps one second moment for each row of a Gluon parameter, see ``RowAdam``."""
    return getattr(parameter, "row_moments", False)


class RowAdam(mx.optimizer.Adam):
    """MXNet's Adam, with a second moment for each row instead of each number of parameters with ``row_moments``.

    It averages the mean square of the row's gradient, without weight decay.
    """

    def update(self, index: int, weight: Any, grad: Any, state: Any) -> None:
        if not has_row_moments(self.param_dict.get(index)):
            super().update(index, weight, grad, state)
            return
        self._update_count(index)
        rate = Rule(self).rate(self._get_lr(index), self._index_update_count[index])
        first, second = state
        grad = grad * self.rescale_grad
        squares = grad.square().mean(axis=1, keepdims=True).broadcast_like(grad)
        grad += self._get_wd(index) * weight
        first[:] = self.beta1 * first + (1 - self.beta1) * grad
        second[:] = self.beta2 * second + (1 - self.beta2) * squares
        weight -= rate * first / (second.sqrt() + self.epsilon)


class _OwnKernels:
    """Mixin of MXNet's optimizers, for arrays in host memory in the plain layout."""

    def __init__(self: Any, **settings: float) -> None:
        super().__init__(**settings)
        self._rule = Rule(self)

    def update_multi_precision(self: Any, index: Any, weight: Any, grad: Any, state: Any) -> None:
        mx.nd.waitall()
        many = isinstance(index, (list, tuple))
        for each in zip(index, weight, grad, state) if many else [(index, weight, grad, state)]:
            self._update_one(*each)

    def _update_one(self: Any, index: int, weight: Any, grad: Any, state: Any) -> None:
        if self._rule.moments == 2 and has_row_moments(self.param_dict.get(index)):
            self.update(index, weight, grad, state)
            return
        self._update_count(index)
        rule = self._rule
        rate = rule.rate(self._get_lr(index), self._index_update_count[index])
        states = state if isinstance(state, (list, tuple)) else (state,)
        first, second = [None if each is None else pointer(each) for each in (*states, None)][:2]
        library.functions().crepe_update(
            rule.number, rule.constants, weight.size, pointer(weight), first, second, pointer(grad), rate,
            self.rescale_grad, self._get_wd(index), library.threads(),
        )  # fmt: skip


class Adam(_OwnKernels, RowAdam):
    """Adam (Kingma & Ba 2015, arXiv:1412.6980)."""


class SGD(_OwnKernels, mx.optimizer.SGD):
    """Stochastic gradient descent with momentum."""


class NAG(_OwnKernels, mx.optimizer.NAG):
    """Nesterov's accelerated gradient."""


OPERATORS = {"adam": RowAdam, "sgd": mx.optimizer.SGD, "nag": mx.optimizer.NAG}
OWN = {"adam": Adam, "sgd": SGD, "nag": NAG}


def other_optimizer(why: str) -> UserError:
    """Make the error for a saved state that does not fit the optimizer or the parameters."""
    return UserError("the saved state belongs to another optimizer", why, "start another run with --fresh")
