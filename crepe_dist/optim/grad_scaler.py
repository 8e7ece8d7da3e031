"""Loss scaling in float16."""

from __future__ import annotations

# The first loss scale keeps the largest gradient of the first steps seven times below float16's limit.
INIT_SCALE, MAX_SCALE = 2.0**13, 2.0**24
GROWTH_INTERVAL = 2000  # steps without an overflow


class GradScaler:
    """Scale of the loss in float16 (Micikevicius et al. 2018, arXiv:1710.03740).

    It is halved after an overflow, and doubled after ``GROWTH_INTERVAL`` steps without one.

    Attributes:
        scale: factor of a MEAN loss; ``None`` in other precisions. Gradients of a sum over n documents are up to n
            times as large, so its factor is ``scale`` / n, with n rounded up to a power of two, which keeps the
            division exact. A scale thus suits any batch size and number of processes.
        factor: factor of the gradients of the last step.
    """

    def __init__(self, precision: str) -> None:
        self.scale = INIT_SCALE if precision == "float16" else None
        self.grad_factor = 1.0
        self._good = 0

    def scale_for(self, global_batch_size: int) -> float:
        """Return the factor of a loss that is a sum over the documents of the global batch."""
        if self.scale is not None:
            self.grad_factor = self.scale / (1 << (global_batch_size - 1).bit_length())
        return self.grad_factor

    def record_finite_step(self) -> None:
        """Record a step whose summed gradients were finite."""
        self._good += 1
        if self.scale is not None and self._good == GROWTH_INTERVAL:
            self._good = 0
            self.scale = min(MAX_SCALE, self.scale * 2)

    def back_off(self) -> bool:
        """Lower the scale after an overflow; return false if it cannot be lower, so the cause is another one."""
        self._good = 0
        if self.scale is None or self.scale == 1.0:
            return False
        self.scale /= 2
        return True

    def state_dict(self) -> list[float]:
        """Return the state for ``restore``."""
        return [] if self.scale is None else [self.scale, float(self._good)]

    def load_state_dict(self, state: list[float]) -> None:
        """Continue from ``state``; ignore that of another precision."""
        if state and self.scale is not None:
            self.scale, self._good = state[0], int(state[1])
