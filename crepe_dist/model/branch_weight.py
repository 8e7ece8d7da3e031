"""Fit the weight of a second classifier to the validation split. Its logits are added to a first classifier's logits.

With a few thousand documents, one classifier may be much weaker than the other. The weight multiplies the logits of the
second classifier before the sum.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from crepe_dist.model.calibration import LOSS_UNITS_PER_NAT, TEMPERATURES, losses_at, to_fixed_point
from crepe_dist.native.constants import BRANCH_SUM_SCALE

# Candidate weights: powers of two, because a product with a power of two is exact in floating point.
WEIGHTS = (0.25, 0.5, 1.0, 2.0, 4.0)
SPREAD = 1.0  # Standard deviation of the prior of the weight's base-2 logarithm; its mean is 0.
SOME_TEMPERATURES = TEMPERATURES[::4]  # Temperatures that are tried for each weight.


def add_branches(parts: npt.NDArray[np.float32], weight: float) -> npt.NDArray[np.float32]:
    """Add the logits of two classifiers, float32 [n, 2, classes], in the same way as the kernels."""
    return np.float32(BRANCH_SUM_SCALE) * (parts[:, 0] + np.float32(weight) * parts[:, 1])


class BranchWeightFitter:
    """Loss sums over scored texts, from which the weight is computed. Ranks score different texts and add their sums.

    Attributes:
        sums: loss for each of ``WEIGHTS`` at each of ``SOME_TEMPERATURES``, int64, in the units of
            ``calibration.to_fixed_point``.
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
        """Return the weight with the lowest loss at its best temperature.

        A normal prior of the weight's logarithm keeps the weight near 1 if there are few texts.
        """
        losses = self.sums.min(axis=1) / LOSS_UNITS_PER_NAT + (np.log2(WEIGHTS) / SPREAD) ** 2 / 2
        return WEIGHTS[int(losses.argmin())]
