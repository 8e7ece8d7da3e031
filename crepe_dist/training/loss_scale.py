"""Loss scaling for float16 (Micikevicius et al. 2018, arXiv:1710.03740), without waiting for the device."""

from __future__ import annotations

from collections import deque
from typing import Any

import mxnet as mx

START = 2.0**15
LARGEST = 2.0**24
GROW_AFTER = 2000  # steps without an overflow
LAG = 8  # steps after which a flag is looked at; the device has passed them long since


class LossScale:
    """A constant 1: what float32 and bfloat16 need.

    Attributes:
        scale: the loss is multiplied by it before the backward pass.
    """

    scale = 1.0

    def guard(self, gradients: list[Any]) -> None:
        """Called with the gradients summed over the ranks; keeps an overflow out of the parameters."""


class DynamicLossScale(LossScale):
    """Halved after an overflow, doubled after ``GROW_AFTER`` steps without.

    Gradients that hold an infinity or NaN become zeros on the device, so such a step moves the parameters by momentum
    and weight decay alone. That is decided on gradients summed over the ranks, hence alike on all of them. Whether it
    was so is only looked at ``LAG`` steps later: looking at once would make the device wait for the host in each step.
    """

    def __init__(self) -> None:
        self.scale = START
        self._flags: deque[tuple[float, Any]] = deque()
        self._good = 0

    def guard(self, gradients: list[Any]) -> None:
        finite = mx.nd.multi_all_finite(*gradients, num_arrays=len(gradients))
        for gradient in gradients:
            keep = finite.broadcast_to((gradient.shape[0],))
            gradient[:] = mx.nd.where(keep, gradient, mx.nd.zeros_like(gradient))
        self._flags.append((self.scale, finite))
        if len(self._flags) > LAG:
            self._adjust(*self._flags.popleft())

    def _adjust(self, scale: float, finite: Any) -> None:
        if not finite.asscalar():
            self._good = 0
            if scale == self.scale:  # steps that began before the last halving halve it no more
                self.scale = max(1.0, scale / 2)
        else:
            self._good += 1
            if self._good == GROW_AFTER:
                self._good = 0
                self.scale = min(LARGEST, self.scale * 2)


def loss_scale(precision: str) -> LossScale:
    return DynamicLossScale() if precision == "float16" else LossScale()
