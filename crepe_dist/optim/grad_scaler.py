"""Dynamic loss scaling for float16 training."""

# Initial scale of the loss. At this scale, the largest gradient of the first steps is one seventh of the float16
# maximum.
INIT_SCALE = 2.0**13
MAX_SCALE = 2.0**24  # Maximum scale of the loss.
GROWTH_INTERVAL = 2000  # Number of consecutive steps without an overflow after which the scale is doubled.


class GradScaler:
    """Dynamic scale of the loss in float16 (Micikevicius et al. 2018, arXiv:1710.03740), as ``torch.amp.GradScaler``.

    The scale is halved after an overflow, and doubled after ``GROWTH_INTERVAL`` steps without an overflow.

    Attributes:
        scale: Factor of the mean loss; ``None`` in other precisions. The kernels compute the gradient of the sum of the
            losses of n documents, which is up to n times as large as the gradient of the mean. They therefore multiply
            the sum by ``scale`` / n, with n rounded up to a power of two so that the division is exact. The same scale
            thus suits every batch size and number of processes.
        grad_factor: Factor by which loss scaling multiplied the gradients of the last step; 1 in other precisions.
    """

    def __init__(self, precision: str) -> None:
        self.scale = INIT_SCALE if precision == "float16" else None
        self.grad_factor = 1.0
        self._finite_steps = 0

    def scale_for(self, global_batch_size: int) -> float:
        """Return the factor for the sum of the losses of a global batch, and store it as ``grad_factor``."""
        if self.scale is not None:
            self.grad_factor = self.scale / (1 << (global_batch_size - 1).bit_length())
        return self.grad_factor

    def record_finite_step(self) -> None:
        """Record a step whose summed gradients were finite."""
        self._finite_steps += 1
        if self.scale is not None and self._finite_steps == GROWTH_INTERVAL:
            self._finite_steps = 0
            self.scale = min(MAX_SCALE, self.scale * 2)

    def back_off(self) -> bool:
        """Halve the scale after an overflow.

        Returns:
            True if the scale was halved. False if there is no scale, or if it is already 1. In these cases, loss
            scaling is not the cause of the overflow.
        """
        self._finite_steps = 0
        if self.scale is None or self.scale == 1.0:
            return False
        self.scale /= 2
        return True

    def state_dict(self) -> list[float]:
        """Return the scale and the number of finite steps since its last change, or an empty list without a scale."""
        return [] if self.scale is None else [self.scale, float(self._finite_steps)]

    def load_state_dict(self, state: list[float]) -> None:
        """Restore the result of ``state_dict``. The state of another precision is ignored."""
        if state and self.scale is not None:
            self.scale, self._finite_steps = state[0], int(state[1])
