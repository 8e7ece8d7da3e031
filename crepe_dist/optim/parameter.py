"""Parameter of a network in training."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


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

    data: npt.NDArray[np.float32]
    lr_mult: float = 1.0
    rowwise_second_moment: bool = False
    requires_grad: bool = True
    grad: npt.NDArray[np.int32] | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        return self.data.shape
