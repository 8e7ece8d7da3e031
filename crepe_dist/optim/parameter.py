"""Parameter of a network during training."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(eq=False)
class Parameter:
    """Parameter of a network during training.

    Attributes:
        data: Values of the parameter, float32. On a CPU, the native kernels read and update this array in place.
            Row-sparse parameters are an exception: a ``ShardedEmbedding`` holds their current values.
        lr_mult: Learning-rate multiplier.
        rowwise_second_moment: True if Adam keeps one second moment per row instead of one per element.
        requires_grad: True if the optimizer updates the parameter. False for buffers, which are computed once from the
            training split.
        grad: Sum of the gradients as fixed-point int32 numbers. The distributed optimizer allocates this array.
            ``grad`` is ``None`` on a GPU, for parameters that are not trained, and for row-sparse parameters.
    """

    data: npt.NDArray[np.float32]
    lr_mult: float = 1.0
    rowwise_second_moment: bool = False
    requires_grad: bool = True
    grad: npt.NDArray[np.int32] | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        return self.data.shape
