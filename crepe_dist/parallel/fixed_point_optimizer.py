"""Base class of the distributed optimizers whose gradients are fixed-point numbers."""

import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np

from crepe_dist.data.arrays import Arrays
from crepe_dist.optim.fixed_point import FixedPointScales
from crepe_dist.parallel.distributed_optimizer import DistributedOptimizer, StepStats


def num_step_stats(scales: FixedPointScales) -> int:
    """Return the number of statistics that each rank sends with its gradients.

    The statistics are one bound per trained parameter, the loss, the step, the global batch size and the requested
    action.
    """
    return len(scales.parameters) + 4


class FixedPointOptimizer(DistributedOptimizer):
    """Base class of the distributed optimizers whose gradients are fixed-point numbers.

    Args:
        scales: The trained parameters, and the fixed-point scales of their gradients.
    """

    def __init__(self, scales: FixedPointScales) -> None:
        self._scales = scales
        self._num_updates = 0

    def _all_reduce(self, loss: float, step_info: Sequence[int]) -> tuple[list[StepStats], tuple[int, ...], bool]:
        num_parameters = len(self._scales.parameters)
        stats = self._sum_gradients(loss, step_info)
        sum_bounds = [rank_stats[:num_parameters] for rank_stats in stats]
        nonfinite_ranks = tuple(
            rank for rank, rank_bounds in enumerate(sum_bounds) if not all(map(math.isfinite, rank_bounds))
        )
        needs_recompute = not self._scales.update_scales(sum_bounds)
        return [rank_stats[num_parameters:] for rank_stats in stats], nonfinite_ranks, needs_recompute

    @abstractmethod
    def _sum_gradients(self, loss: Any, step_info: Sequence[int]) -> list[StepStats]:
        """Sum the dense gradients over the ranks. Return the bounds, the loss and the ``step_info`` of each rank."""

    def state_dict(self) -> Arrays:
        arrays: Arrays = {"updates": np.array([self._num_updates], dtype=np.int64)}
        if (exponents := self._scales.state_dict()) is not None:
            arrays["exponents"] = exponents
        return arrays
