"""Loss scaling for float16 (Micikevicius et al. 2018, arXiv:1710.03740)."""

from __future__ import annotations

START = 2.0**13  # keeps the largest gradient of the first steps seven times below float16's limit
LARGEST = 2.0**24
GROW_AFTER = 2000  # steps without an overflow


class LossScale:
    """A constant scale of 1, for float32 and bfloat16."""

    def factor(self, rows: int) -> float:
        """Return the factor of a loss that is a sum over ``rows`` documents, before the backward pass."""
        return 1.0

    def good(self) -> None:
        """Record a step whose summed gradients were finite."""

    def lower(self) -> bool:
        """Lower the scale after an overflow; return false if it is already minimal, so the cause is another one."""
        return False

    def state(self) -> list[float]:
        """Return the state for ``restore``."""
        return []

    def restore(self, state: list[float]) -> None:
        """Continue from ``state``."""


class DynamicLossScale(LossScale):
    """A scale that is halved after an overflow and doubled after ``GROW_AFTER`` steps without one.

    Attributes:
        scale: factor of a MEAN loss. Gradients of a sum over n documents are up to n times as large, so its factor is
            ``scale`` / n, with n rounded up to a power of two, which keeps the division exact. A scale thus suits any
            batch size and number of processes.
    """

    def __init__(self) -> None:
        self.scale = START
        self._good = 0

    def factor(self, rows: int) -> float:
        return self.scale / (1 << (rows - 1).bit_length())

    def good(self) -> None:
        self._good += 1
        if self._good == GROW_AFTER:
            self._good = 0
            self.scale = min(LARGEST, self.scale * 2)

    def lower(self) -> bool:
        self._good = 0
        if self.scale == 1.0:
            return False
        self.scale /= 2
        return True

    def state(self) -> list[float]:
        return [self.scale, float(self._good)]

    def restore(self, state: list[float]) -> None:
        if state:
            self.scale, self._good = state[0], int(state[1])


def loss_scale(precision: str) -> LossScale:
    """Return the loss scale that a precision needs."""
    return DynamicLossScale() if precision == "float16" else LossScale()
