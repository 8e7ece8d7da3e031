"""Fixed-point gradients, whose sums are bit-identical for any number of processes and threads.

Floating-point addition is not associative: the order of the additions affects the last bits of a sum. The order depends
on how a batch is divided among processes and threads. The native kernels therefore represent gradients as int32
multiples of a power of two, which is the scale of the parameter (``native/fixed_point.h``). A kernel computes the
contribution of a small, fixed group of documents in floating point, and rounds it to an integer. The sum of these
integers does not depend on the order of the additions.

The kernels also compute an upper bound on the absolute value of each sum. The bound determines the scale for the next
step, so that the next sum can be eight times as large without overflow. If a sum may have overflowed int32, the step is
recomputed with a larger scale. The first step is also recomputed if a scale is much too large.
"""

import ctypes
import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from crepe_dist.native.library import pointers
from crepe_dist.optim.parameter import Parameter

# A scale is 2**exponent. If the exponent is MAX_EXPONENT, the sum of thousands of the largest float32 numbers fits into
# int32.
INITIAL_EXPONENT, MIN_EXPONENT, MAX_EXPONENT = -24, -90, 110
BOUND_UNIT = 1024  # Unit of the bounds of small batches, in fixed-point units.
OVERFLOW_BOUND = 2**20  # A sum may overflow int32 if its bound, in units of BOUND_UNIT, reaches this value.
TARGET_BITS = 17  # The scale of the next step is chosen so that the bound is below 2**17 units of BOUND_UNIT.
# The first step is repeated with a smaller scale while a bound, in units of BOUND_UNIT, is below this value.
MIN_BOUND = 2**14
# Each term adds at least one unit to a bound. If the unit were BOUND_UNIT, the bounds of 2**17 documents would always
# exceed the target, and the scale would grow in every step. For batches of more than SMALL_BATCH documents, the unit is
# therefore smaller than BOUND_UNIT. Sums of bounds in float32 are exact up to 2**24, and a larger sum is never rounded
# below 2**24.
SMALL_BATCH, LARGE_BATCH_BOUND_UNIT = 2**16, 64
# Increase of the exponent of a scale after a possible overflow, because the true bound is then unknown.
OVERFLOW_STEP_BITS = 6


class FixedPointScales:
    """Fixed-point scales of the gradients of a network, one per trained parameter.

    Args:
        parameters: Parameters of the network by name, in the order that the kernels expect.

    Attributes:
        parameters: Trained parameters by name.
        exponents: Exponents of the current scales, C array of int32 [parameters]. A scale is 2**exponent.
        bound_unit: Unit of ``sum_bounds``, in fixed-point units.
        sum_bounds: Upper bounds on the absolute gradient sums of this process, C array of float32 [parameters]. The
            kernels write this array. A bound is NaN if a gradient is not finite.
    """

    def __init__(self, parameters: Mapping[str, Parameter]) -> None:
        self.parameters = {name: parameter for name, parameter in parameters.items() if parameter.requires_grad}
        self.exponents: Any = (ctypes.c_int32 * len(self.parameters))()
        self.sum_bounds: Any = (ctypes.c_float * len(self.parameters))()
        self._index = {name: index for index, name in enumerate(self.parameters)}
        self._step_exponents: list[int] | None = None  # Exponents of the next step. None before the first update.
        self._retry_exponents: list[int] | None = None  # Exponents of the next attempt at the same step, if any.
        self.start_step(1)

    @cached_property
    def grad_addresses(self) -> Any:
        """C array of the addresses of the gradients. The elements for row-sparse parameters are null."""
        return pointers(parameter.grad for parameter in self.parameters.values())

    def start_step(self, global_batch_size: int) -> None:
        """Apply the scales that ``update_scales`` chose last. Call it before a step is computed or recomputed."""
        self.bound_unit = BOUND_UNIT if global_batch_size <= SMALL_BATCH else LARGE_BATCH_BOUND_UNIT
        self.exponents[:] = self._retry_exponents or self._step_exponents or [INITIAL_EXPONENT] * len(self.parameters)
        self._retry_exponents = None

    def update_scales(self, sum_bounds: Sequence[Sequence[float]]) -> bool:
        """Choose the scales of the next step from the bounds of this step.

        Args:
            sum_bounds: Bounds of each process, [processes, parameters].

        Returns:
            False if the step must be recomputed, with scales that this method has chosen. True if the sums of this step
            can be used, or if a bound is not finite.
        """
        totals = [sum(process_bounds) * (self.bound_unit / BOUND_UNIT) for process_bounds in zip(*sum_bounds)]
        if not all(map(math.isfinite, totals)):
            return True
        current = self.exponents[:]
        fitted = [_next_exponent(exponent, total) for exponent, total in zip(current, totals)]
        if any(total >= OVERFLOW_BOUND and exponent < MAX_EXPONENT for exponent, total in zip(current, totals)):
            self.exponents[:] = self._retry_exponents = list(map(max, fitted, current))
            return False
        if self._step_exponents is None and any(
            total < MIN_BOUND and next_exponent < exponent
            for exponent, total, next_exponent in zip(current, totals, fitted)
        ):
            self.exponents[:] = self._retry_exponents = fitted
            return False
        # Decrease an exponent by at most 1 per step, because the gradients of a single step may be small by chance.
        self._step_exponents = [max(next_exponent, exponent - 1) for exponent, next_exponent in zip(current, fitted)]
        return True

    def scale_of(self, parameter: str) -> float:
        """Return the scale of a parameter's gradient in the current step."""
        return float(2.0 ** self.exponents[self._index[parameter]])

    def state_dict(self) -> npt.NDArray[np.int32] | None:
        """Return the exponents of the next step, or ``None`` before the first update."""
        return None if self._step_exponents is None else np.array(self._step_exponents, np.int32)

    def load_state_dict(self, state: npt.NDArray[np.int32] | None) -> None:
        """Restore the result of ``state_dict``."""
        self._step_exponents = None if state is None else state.tolist()


def _next_exponent(exponent: int, total: float) -> int:
    """Return the exponent for the next step, given the exponent and the bound on the sum in this step."""
    if total >= OVERFLOW_BOUND:
        fitted = exponent + OVERFLOW_STEP_BITS
    else:
        fitted = exponent + math.frexp(total)[1] - TARGET_BITS if total > 0 else exponent
    return min(max(fitted, MIN_EXPONENT), MAX_EXPONENT)
