"""Update of the parameters whose gradients are whole numbers of all rows; for tables see ``table``."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from crepe_dist.exchange.parameter import Parameter
from crepe_dist.exchange.quanta import Quanta
from crepe_dist.exchange.rule import Rule
from crepe_dist.exchange.saved_arrays import Arrays, SavedArrays
from crepe_dist.native import library
from crepe_dist.native.library import pointers

Moment = npt.NDArray[np.float32]


class DenseUpdate:
    """Optimizer of the parameters, which our own kernels update in one call.

    Args:
        parameters: parameters by name.

    Attributes:
        parameters: as given.
    """

    def __init__(self, rule: Rule, parameters: Mapping[str, Parameter], quanta: Quanta) -> None:
        self.parameters = dict(parameters)
        self._rule = rule
        self._quanta = quanta
        self._moments: dict[str, list[Moment]] = {}
        self._addresses: tuple[Any, ...] = ()  # sizes; values, first moments, second moments and gradients

    def update(self, rate: float, scale: float) -> None:
        """Update the parameters with ``scale`` times their gradients.

        Args:
            rate: learning rate, for Adam with the correction of its bias.
        """
        if not self._addresses:
            self._addresses = self._locate()
        rule, parameters = self._rule, self.parameters.values()
        numbers = ctypes.c_double * len(parameters)
        rates = numbers(*[rate * parameter.rate for parameter in parameters])
        scales = numbers(*[scale * self._quanta.of(name) for name in self.parameters])
        library.functions().crepe_update(
            rule.number, rule.constants, len(parameters), *self._addresses, rates, scales, rule.weight_decay,
            library.threads(),
        )  # fmt: skip

    def _locate(self) -> tuple[Any, ...]:
        zeros = {
            name: [np.zeros(parameter.shape, np.float32) for _ in range(self._rule.moments)]
            for name, parameter in self.parameters.items()
        }
        self._moments = {**zeros, **self._moments}
        firsts, seconds = zip(*[(*self._moments[name], None, None)[:2] for name in self.parameters])
        parameters = self.parameters.values()
        sizes = (ctypes.c_int64 * len(parameters))(*[parameter.value.size for parameter in parameters])
        values, gradients = [p.value for p in parameters], [p.gradient for p in parameters]
        return sizes, *map(pointers, (values, firsts, seconds, gradients))

    def squares(self) -> float:
        """Return the sum of the squares of the gradients."""
        total, sums = 0.0, (ctypes.c_uint64 * 2)()
        for name, parameter in self.parameters.items():
            assert parameter.gradient is not None
            library.functions().crepe_squares(parameter.gradient.ctypes.data, parameter.gradient.size, sums)
            low, high = sums
            total += (low + (high << 32)) * self._quanta.of(name) ** 2
        return total

    def arrays(self) -> Arrays:
        """Copy the moments; none before the first update."""
        return {f"{name}.{k}": m.copy() for name, moments in self._moments.items() for k, m in enumerate(moments)}

    def restore(self, saved: SavedArrays) -> None:
        """Restore the result of ``arrays``."""
        for name, parameter in self.parameters.items():
            moments = saved.moments(name, self._rule.moment_shapes(parameter))
            if moments is not None:
                self._moments[name] = [np.array(moment) for moment in moments]
        self._addresses = ()

    @property
    def bytes(self) -> dict[str, int]:
        """Memory of the gradients and the moments, in bytes."""
        gradients = 4 * sum(parameter.value.size for parameter in self.parameters.values())
        moments = sum(4 * moment.size for of_one in self._moments.values() for moment in of_one)
        return {"gradients": gradients, "optimizer state": moments}
