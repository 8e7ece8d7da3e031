"""The weight of a second classifier beside a first, fitted to a validation split.

With a few thousand documents one may be much weaker than the other. The weight multiplies the second one's logits
before both are added.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from crepe_dist.model.calibration import LOSS_UNITS_PER_NAT, TEMPERATURES, losses_at, to_fixed_point
from crepe_dist.native.constants import BRANCH_SUM_SCALE

WEIGHTS = (0.25, 0.5, 1.0, 2.0, 4.0)  # powers of two, by which floating-point numbers are multiplied exactly
SPREAD = 1.0  # standard deviation of the belief in weight 1, in powers of two
SOME_TEMPERATURES = TEMPERATURES[::4]


def add_branches(parts: npt.NDArray[np.float32], weight: float) -> npt.NDArray[np.float32]:
    """Add the logits of two classifiers, float32 [n, 2, classes], as the kernels do."""
    return np.float32(BRANCH_SUM_SCALE) * (parts[:, 0] + np.float32(weight) * parts[:, 1])


class BranchWeightFitter:
    """Sums over scored texts from which the weight follows. Ranks score different texts, and add their sums.

    Attributes:
        sums: loss for each of ``WEIGHTS`` at each of ``SOME_TEMPERATURES``, int64, as ``calibration.to_fixed_point``
        gives it.
    """

    def __init__(self) -> None:
        self.sums = np.zeros((len(WEIGHTS), len(SOME_TEMPERATURES)), np.int64)

    def add(self, parts: npt.NDArray[np.float32], labels: npt.NDArray[np.int32]) -> None:
        """Add a batch: the logits of both, float32 [n, 2, classes]; labels, int32 [n]."""
        if not len(labels):
            return
        for sums, weight in zip(self.sums, WEIGHTS):
            for some, losses, _ in losses_at(SOME_TEMPERATURES, add_branches(parts, weight), labels):
                sums[some] += to_fixed_point(losses).sum(axis=1)

    def best_weight(self) -> float:
        """Choose the weight of the lowest loss at its best temperature.

        A normal prior of its logarithm keeps the weight of few texts near 1.
        """
        losses = self.sums.min(axis=1) / LOSS_UNITS_PER_NAT + (np.log2(WEIGHTS) / SPREAD) ** 2 / 2
        return WEIGHTS[int(losses.argmin())]
