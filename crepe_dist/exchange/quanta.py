"""Gradients in whole numbers, so that their sums are bit-identical for any number of processes and threads.

The order in which floating-point numbers are added changes the last bits of their sum, and it depends on how processes
and threads divide a batch. Our own kernels therefore round each term of a gradient to a multiple of a power of two, the
quantum of its parameter, and count quanta in int32 (``native/whole.h``). The terms are those of a few documents, always
the same ones, and whole numbers add up exactly in any order.

The kernels also bound each sum. The bound determines the quantum of the next step, with room for a sum eight times as
large. A step whose sum might overflow is computed again with a larger quantum, and the first step is repeated until the
quanta are small enough.
"""

from __future__ import annotations

import ctypes
import math
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from crepe_dist.data.arrays import Arrays
from crepe_dist.exchange.exchange import Exchange, Row
from crepe_dist.native.library import pointers

# Exponents of a quantum. With the highest, a sum of thousands of float32's largest numbers fits.
FIRST, LOWEST, HIGHEST = -24, -90, 110
# Bounds in 1024 quanta. Sums with a bound from 2**20 on may not fit into 31 bits. The next bound is meant to be below
# 2**17, and the first at least 2**14.
UNIT, LEAST, NEXT_BITS, MOST = 1024, 2**14, 17, 2**20
# A document's term counts as at least one unit, so 2**17 documents would never fit: the bounds of more than FEW are in
# smaller units. float32 adds them up exactly up to 2**24, and never rounds a larger sum to less.
FEW, SMALL_UNIT = 2**16, 64
RAISE = 6  # bits, where the bound is only known to be too large


@dataclass(eq=False)
class Parameter:
    """A parameter of a network in training.

    Attributes:
        value: its numbers, float32; on a CPU, our kernels read and write them in place, but for tables.
        rate: multiple of the learning rate.
        row_moments: Adam keeps one second moment for each row.
        is_trained: the optimizer updates it; else it was counted in the training split.
        gradient: the sum of its gradients in quanta, int32, of which an exchange decides the place; ``None`` on a GPU,
            or if there is none, or the parameter is trained row by row.
    """

    value: npt.NDArray[np.float32]
    rate: float = 1.0
    row_moments: bool = False
    is_trained: bool = True
    gradient: npt.NDArray[np.int32] | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        return self.value.shape


class Quanta:
    """Quanta of the gradients of a network.

    Args:
        parameters: trained parameters by name, in the order of the kernels.

    Attributes:
        exponents: a quantum is 2**exponent, a C array of int32 [parameters].
        unit: unit of the bounds, in quanta.
        bounds: bounds of the sums of this process's terms, a C array of float32 [parameters], NaN for terms that are
            not finite; the kernels write them.
    """

    def __init__(self, parameters: Mapping[str, Parameter]) -> None:
        self.parameters = dict(parameters)
        self.exponents: Any = (ctypes.c_int32 * len(self.parameters))()
        self.bounds: Any = (ctypes.c_float * len(self.parameters))()
        self._index = {name: index for index, name in enumerate(parameters)}
        self._kept: list[int] | None = None  # exponents of the next step
        self._next: list[int] | None = None  # those of the next attempt, if it is not that of the next step
        self.begin(1)

    @cached_property
    def gradients(self) -> Any:
        """Addresses of the gradients, null for parameters that are trained row by row."""
        return pointers(parameter.gradient for parameter in self.parameters.values())

    def begin(self, documents: int) -> None:
        """Begin a step on a global batch of ``documents``, or another attempt, with the quanta of the last ``fit``."""
        self.unit = UNIT if documents <= FEW else SMALL_UNIT
        self.exponents[:] = self._next or self._kept or [FIRST] * len(self.parameters)
        self._next = None

    def fit(self, bounds: Sequence[Sequence[float]]) -> bool:
        """Return whether all sums fit into int32; choose the quanta of the next step or, if not, of another attempt.

        Args:
            bounds: bounds of each process, [processes, parameters].
        """
        totals = [sum(of_parameter) * (self.unit / UNIT) for of_parameter in zip(*bounds)]
        if not all(map(math.isfinite, totals)):
            return True
        now = self.exponents[:]
        wanted = [_wanted(exponent, total) for exponent, total in zip(now, totals)]
        if any(total >= MOST and exponent < HIGHEST for exponent, total in zip(now, totals)):
            self.exponents[:] = self._next = list(map(max, wanted, now))
            return False
        if self._kept is None and any(
            total < LEAST and next_one < exponent for exponent, total, next_one in zip(now, totals, wanted)
        ):
            self.exponents[:] = self._next = wanted
            return False
        # Slowly, because single steps may have small gradients.
        self._kept = [max(next_one, exponent - 1) for exponent, next_one in zip(now, wanted)]
        return True

    def of(self, parameter: str) -> float:
        """Return the quantum of a parameter."""
        return float(2.0 ** self.exponents[self._index[parameter]])

    def state(self) -> npt.NDArray[np.int32] | None:
        """Return the exponents of the next step, for ``restore``; ``None`` before the first sum."""
        return None if self._kept is None else np.array(self._kept, np.int32)

    def restore(self, state: npt.NDArray[np.int32] | None) -> None:
        """Restore the result of ``state``."""
        self._kept = None if state is None else state.tolist()


def _wanted(exponent: int, total: float) -> int:
    """Return the exponent of the next quantum of a sum whose bound is ``total``."""
    if total >= MOST:
        wanted = exponent + RAISE
    else:
        wanted = exponent + math.frexp(total)[1] - NEXT_BITS if total > 0 else exponent
    return min(max(wanted, LOWEST), HIGHEST)


def row_width(quanta: Quanta) -> int:
    """Return the numbers of a rank's row: the bounds of its gradients, and its loss, step, documents and vote."""
    return len(quanta.parameters) + 4


class WholeNumberExchange(Exchange):
    """Base class of the exchanges whose gradients are whole numbers, which their sums remain.

    Args:
        quanta: the trained parameters, and quanta of their gradients.
    """

    def __init__(self, quanta: Quanta) -> None:
        self._quanta = quanta
        self._updates = 0

    def _all_reduce(self, loss: float, numbers: Sequence[int]) -> tuple[list[Row], tuple[int, ...], bool]:
        quanta, parameters = self._quanta, len(self._quanta.parameters)
        rows = self._add(loss, numbers)
        bounds = [row[:parameters] for row in rows]
        not_finite = tuple(rank for rank, of_rank in enumerate(bounds) if not all(map(math.isfinite, of_rank)))
        return [row[parameters:] for row in rows], not_finite, not quanta.fit(bounds)

    @abstractmethod
    def _add(self, loss: Any, numbers: Sequence[int]) -> list[Row]:
        """Sum the gradients over the ranks, and return the rows of all ranks: bounds, loss and numbers."""

    def arrays(self) -> Arrays:
        arrays: Arrays = {"updates": np.array([self._updates], dtype=np.int64)}
        if (quanta := self._quanta.state()) is not None:
            arrays["quanta"] = quanta
        return arrays


def mean_scale(documents: float, clip_norm: float | None, squares: Callable[[], float]) -> float:
    """Return the factor of sums of gradients that gives their mean, clipped to a norm of ``clip_norm`` if it is given.

    Args:
        squares: returns the sum of the squares of the sums.
    """
    scale = np.float32(1 / documents)
    if clip_norm is None:
        return float(scale)
    norm = np.sqrt(np.float32(squares())) * scale
    clip = np.minimum(np.float32(clip_norm) / (norm + np.float32(1e-12)), np.float32(1))
    return float(scale) * float(clip)
