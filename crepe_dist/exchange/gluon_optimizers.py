"""MXNet's optimizers, for floating-point gradients."""

from __future__ import annotations

from typing import Any

import mxnet as mx

from crepe_dist.exchange.rule import Rule


class RowAdam(mx.optimizer.Adam):
    """MXNet's Adam, with a second moment for each row instead of each number of parameters with ``row_moments``.

    It averages the mean square of the row's gradient, without weight decay.
    """

    def __init__(self, rule: Rule) -> None:
        beta1, beta2 = rule.decays
        super().__init__(beta1=beta1, beta2=beta2, epsilon=rule.epsilon, wd=rule.weight_decay)
        self._rule = rule

    def create_state(self, index: int, weight: Any) -> tuple[Any, ...]:
        if not self.param_dict[index].row_moments:
            state: tuple[Any, ...] = super().create_state(index, weight)
            return state
        return weight.zeros_like(), mx.nd.zeros((weight.shape[0], 1), ctx=weight.context)

    def update(self, index: int, weight: Any, grad: Any, state: Any) -> None:
        if not self.param_dict[index].row_moments:
            super().update(index, weight, grad, state)
            return
        self._update_count(index)
        rate = self._rule.rate(self._get_lr(index), self._index_update_count[index])
        first, second = state
        grad = grad * self.rescale_grad
        squares = grad.square().mean(axis=1, keepdims=True)
        grad += self._get_wd(index) * weight
        first[:] = self.beta1 * first + (1 - self.beta1) * grad
        second[:] = self.beta2 * second + (1 - self.beta2) * squares
        weight -= rate * first / (second.sqrt() + self.epsilon)


def make_optimizer(rule: Rule) -> mx.optimizer.Optimizer:
    """Make MXNet's optimizer for a rule; each update gets its learning rate."""
    if rule.name == "adam":
        return RowAdam(rule)
    momentum, _ = rule.decays
    return mx.optimizer.SGD(momentum=momentum, wd=rule.weight_decay)
