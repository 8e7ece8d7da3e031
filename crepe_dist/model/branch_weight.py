"""Weight of the second of two classifiers, fitted to the validation split.

The logits of two classifiers are added. The weight multiplies the logits of the second classifier before the addition.
A weight is useful because one of the classifiers may be much weaker if there are only a few thousand documents.
"""

import numpy as np
import numpy.typing as npt

from crepe_dist.model.calibration import LOSS_UNITS_PER_NAT, TEMPERATURES, losses_at, to_fixed_point
from crepe_dist.native.constants import BRANCH_SUM_SCALE

# Candidate weights. They are powers of two, because multiplication by a power of two is exact in floating point.
WEIGHTS = (0.25, 0.5, 1.0, 2.0, 4.0)
SPREAD = 1.0  # Standard deviation of the normal prior of log2(weight). The mean of the prior is 0.
SOME_TEMPERATURES = TEMPERATURES[::4]  # Each weight is evaluated at these temperatures.


def add_branches(parts: npt.NDArray[np.float32], weight: float) -> npt.NDArray[np.float32]:
    """Add the logits of two classifiers, float32 [n, 2, classes], in the same way as the kernels."""
    return np.float32(BRANCH_SUM_SCALE) * (parts[:, 0] + np.float32(weight) * parts[:, 1])


class BranchWeightFitter:
    """Accumulator of the losses that determine the weight.

    Each rank accumulates its own texts. The sums of all ranks are then added.

    Attributes:
        sums: Summed loss for each of ``WEIGHTS`` at each of ``SOME_TEMPERATURES``, int64 [weights, temperatures], in
            the units of ``calibration.to_fixed_point``.
    """

    def __init__(self) -> None:
        self.sums = np.zeros((len(WEIGHTS), len(SOME_TEMPERATURES)), np.int64)

    def add(self, parts: npt.NDArray[np.float32], labels: npt.NDArray[np.int32]) -> None:
        """Add a batch: the logits of both classifiers, float32 [n, 2, classes], and the labels, int32 [n]."""
        if not len(labels):
            return
        for sums, weight in zip(self.sums, WEIGHTS):
            for chunk, losses, _ in losses_at(SOME_TEMPERATURES, add_branches(parts, weight), labels):
                sums[chunk] += to_fixed_point(losses).sum(axis=1)

    def best_weight(self) -> float:
        """Return the weight with the lowest loss, where each weight is evaluated at its best temperature.

        A normal prior on the logarithm of the weight keeps the weight near 1 if there are few texts.
        """
        losses = self.sums.min(axis=1) / LOSS_UNITS_PER_NAT + (np.log2(WEIGHTS) / SPREAD) ** 2 / 2
        return WEIGHTS[int(losses.argmin())]
