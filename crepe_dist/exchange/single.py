"""Exchange of a single process with floating-point gradients: Gluon's ``Trainer``, and nothing to sum."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import mxnet as mx
import numpy as np
import numpy.typing as npt

from crepe_dist.exchange.exchange import Exchange, Reduced
from crepe_dist.exchange.rule import Rule
from crepe_dist.exchange.saved_arrays import Arrays, SavedArrays
from crepe_dist.mxnet_internals import (
    gradient_scale,
    optimizer_state,
    set_optimizer_state,
    trainer_parameters,
    update_arrays_one_by_one,
    update_arrays_together,
    view,
)


class SingleExchange(Exchange):
    """Exchange of one process, and base class of ``HorovodExchange``.

    Args:
        trainer: the Gluon trainer, or Horovod's.
        rule: rule of its optimizer.
        names: structural names of the parameters by Gluon's names.

    Attributes:
        trainer: as given.
    """

    size = 1

    def __init__(self, trainer: Any, rule: Rule, names: Mapping[str, str]) -> None:
        self.trainer = trainer
        self._rule = rule
        self._parameters = trainer_parameters(trainer)
        self._names = [names[parameter.name] for parameter in self._parameters]
        self._device = self._parameters[0].list_ctx()[0]
        if self._device.device_type == "cpu":
            update_arrays_one_by_one(trainer)
        else:
            update_arrays_together(trainer)

    @property
    def gradients(self) -> list[Any]:
        return [parameter.grad() for parameter in self._parameters]

    def sum(self, compute: Callable[[], Any], numbers: Sequence[int], documents: int) -> Reduced:
        losses, finite = read(compute(), self.gradients)
        return Reduced([numbers], losses.tolist(), () if finite else (0,))

    def update(self, documents: float, learning_rate: float, clip_norm: float | None = None) -> None:
        # Horovod's trainer divides by the number of ranks itself.
        documents /= self.size
        if clip_norm is not None:
            norm = mx.nd.multi_sum_sq(*self.gradients, num_arrays=len(self.gradients)).sum().sqrt()
            norm = norm * (gradient_scale(self.trainer) / documents)
            factor = mx.nd.minimum(clip_norm / (norm + 1e-12), 1.0)
            for gradient in self.gradients:
                gradient[:] = mx.nd.broadcast_mul(gradient, factor.reshape((1,) * gradient.ndim))
        self.trainer.set_learning_rate(learning_rate)
        self.trainer.update(documents)

    def arrays(self) -> Arrays:
        updates, states = optimizer_state(self.trainer)
        arrays: Arrays = {"updates": np.array([updates], dtype=np.int64)}
        for index, state in states.items():
            arrays.update({f"{self._names[index]}.{k}": array.asnumpy() for k, array in enumerate(state)})
        return arrays

    def restore(self, arrays: Arrays) -> None:
        saved, states = SavedArrays(arrays), {}
        saved.quanta(len(self._parameters))
        for index, (name, parameter) in enumerate(zip(self._names, self._parameters)):
            moments = saved.moments(name, [tuple(parameter.shape)] * self._rule.moments)
            if moments is not None:
                states[index] = tuple(mx.nd.array(moment, ctx=self._device) for moment in moments)
        saved.end()
        set_optimizer_state(self.trainer, saved.updates, states, self._device)

    @property
    def bytes(self) -> dict[str, int]:
        gradients = 4 * sum(gradient.size for gradient in self.gradients)
        return {"gradients": gradients, "optimizer state": sum(array.nbytes for array in self.arrays().values())}


def make_optimizer(rule: Rule) -> mx.optimizer.Optimizer:
    """Make MXNet's optimizer for a rule; each update gets its learning rate."""
    first, second = rule.decays
    settings = (
        {"beta1": first, "beta2": second, "epsilon": rule.epsilon} if rule.name == "adam" else {"momentum": first}
    )
    return mx.optimizer.create(rule.name, wd=rule.weight_decay, **settings)


def read(numbers: mx.nd.NDArray, gradients: list[Any]) -> tuple[npt.NDArray[np.float32], bool]:
    """Read a small array, and check that no gradient holds an infinity or NaN, with one wait for the device."""
    if numbers.context.device_type == "cpu":
        # MXNet's operator takes about a second for 12 million gradients there (MXNet 1.9.1).
        mx.nd.waitall()
        return view(numbers).copy(), all(_is_finite(view(gradient).reshape(-1)) for gradient in gradients)
    finite = mx.nd.multi_all_finite(*gradients, num_arrays=len(gradients))
    values = mx.nd.concat(numbers, finite, dim=0).asnumpy()
    return values[:-1], bool(values[-1])


def _is_finite(numbers: npt.NDArray[np.float32]) -> bool:
    # The sum of squares takes a third of the time; only if it overflows is each number checked.
    return bool(np.isfinite(np.dot(numbers, numbers)) or np.isfinite(numbers).all())
