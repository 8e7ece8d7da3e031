"""Gradients in whole numbers, so that their sums are bit-identical for any number of processes and threads.

The order in which floating-point numbers are added changes the last bits of their sum, and it depends on how processes
and threads divide a batch. Our own kernels therefore round each term of a gradient to a multiple of a power of two, the
quantum of its parameter, and count quanta in int32 (``native/fixed_point.h``). The terms are those of a few
documents, always the same ones, and whole numbers add up exactly in any order.

The kernels also bound each sum. The bound determines the quantum of the next step, with room for a sum eight times as
large. A step whose sum might overflow is computed again with a larger quantum, and the first step is repeated until the
quanta are small enough.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from crepe_dist.native.library import pointers
from crepe_dist.optim.parameter import Parameter

# Exponents of a quantum. With the highest, a sum of thousands of float32's largest numbers fits.
INITIAL_EXPONENT, MIN_EXPONENT, MAX_EXPONENT = -24, -90, 110
# Bounds in 1024 quanta. Sums with a bound from 2**20 on may not fit into 31 bits. The next bound is meant to be below
# 2**17, and the first at least 2**14.
BOUND_UNIT, MIN_BOUND, TARGET_BITS, OVERFLOW_BOUND = 1024, 2**14, 17, 2**20
# A document's term counts as at least one unit, so 2**17 documents would never fit: the bounds of more than FEW are in
# smaller units. float32 adds them up exactly up to 2**24, and never rounds a larger sum to less.
SMALL_BATCH, LARGE_BATCH_BOUND_UNIT = 2**16, 64
OVERFLOW_STEP_BITS = 6  # bits, where the bound is only known to be too large


class FixedPointScales:
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
        self.sum_bounds: Any = (ctypes.c_float * len(self.parameters))()
        self._index = {name: index for index, name in enumerate(parameters)}
        self._kept: list[int] | None = None  # exponents of the next step
        self._next: list[int] | None = None  # those of the next attempt, if it is not that of the next step
        self.start_step(1)

    @cached_property
    def grad_addresses(self) -> Any:
        """Addresses of the gradients, null for parameters that are trained row by row."""
        return pointers(parameter.grad for parameter in self.parameters.values())

    def start_step(self, global_batch_size: int) -> None:
        """Begin a step on a global batch of ``documents``, or another attempt, with the quanta of the last ``fit``."""
        self.bound_unit = BOUND_UNIT if global_batch_size <= SMALL_BATCH else LARGE_BATCH_BOUND_UNIT
        self.exponents[:] = self._next or self._kept or [INITIAL_EXPONENT] * len(self.parameters)
        self._next = None

    def update_scales(self, sum_bounds: Sequence[Sequence[float]]) -> bool:
        """Return whether all sums fit into int32; choose the quanta of the next step or, if not, of another attempt.

        Args:
            bounds: bounds of each process, [processes, parameters].
        """
        totals = [sum(of_parameter) * (self.bound_unit / BOUND_UNIT) for of_parameter in zip(*sum_bounds)]
        if not all(map(math.isfinite, totals)):
            return True
        now = self.exponents[:]
        wanted = [_next_exponent(exponent, total) for exponent, total in zip(now, totals)]
        if any(total >= OVERFLOW_BOUND and exponent < MAX_EXPONENT for exponent, total in zip(now, totals)):
            self.exponents[:] = self._next = list(map(max, wanted, now))
            return False
        if self._kept is None and any(
            total < MIN_BOUND and next_one < exponent for exponent, total, next_one in zip(now, totals, wanted)
        ):
            self.exponents[:] = self._next = wanted
            return False
        # Slowly, because single steps may have small gradients.
        self._kept = [max(next_one, exponent - 1) for exponent, next_one in zip(now, wanted)]
        return True

    def scale_of(self, parameter: str) -> float:
        """Return the quantum of a parameter."""
        return float(2.0 ** self.exponents[self._index[parameter]])

    def state_dict(self) -> npt.NDArray[np.int32] | None:
        """Return the exponents of the next step, for ``restore``; ``None`` before the first sum."""
        return None if self._kept is None else np.array(self._kept, np.int32)

    def load_state_dict(self, state: npt.NDArray[np.int32] | None) -> None:
        """Restore the result of ``state``."""
        self._kept = None if state is None else state.tolist()


def _next_exponent(exponent: int, total: float) -> int:
    """Return the exponent of the next quantum of a sum whose bound is ``total``."""
    if total >= OVERFLOW_BOUND:
        wanted = exponent + OVERFLOW_STEP_BITS
    else:
        wanted = exponent + math.frexp(total)[1] - TARGET_BITS if total > 0 else exponent
    return min(max(wanted, MIN_EXPONENT), MAX_EXPONENT)


def mean_and_clip_factor(global_batch_size: float, clip_norm: float | None, squared_norm: Callable[[], float]) -> float:
    """Return the factor of sums of gradients that gives their mean, clipped to a norm of ``clip_norm`` if it is given.

    Args:
        squares: returns the sum of the squares of the sums.
    """
    scale = np.float32(1 / global_batch_size)
    if clip_norm is None:
        return float(scale)
    norm = np.sqrt(np.float32(squared_norm())) * scale
    clip = np.minimum(np.float32(clip_norm) / (norm + np.float32(1e-12)), np.float32(1))
    return float(scale) * float(clip)
