"""The training objective: cross-entropy with optional label smoothing and class weights."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Objective:
    """Weighted cross-entropy with smoothed labels.

    A document's loss is its class weight times the cross-entropy with the target
    (1 - smoothing) × one-hot label + smoothing / classes.

    Attributes:
        smoothing: share of the target spread evenly over all classes (Szegedy et al. 2016, arXiv:1512.00567, section
            7), 0 to below 1.
        weights: weight of each class; empty means 1 for all.
    """

    smoothing: float = 0.0
    weights: tuple[float, ...] = ()

    def class_weights(self, classes: int) -> npt.NDArray[np.float32]:
        """Return the class weights, float32 [classes].

        Raises:
            ValueError: The number of weights differs from ``classes``.
        """
        if self.weights and len(self.weights) != classes:
            raise ValueError(f"{len(self.weights)} weights for {classes} classes")
        return np.array(self.weights or [1.0] * classes, dtype=np.float32)

    def chance_loss(self, counts: npt.NDArray[np.int64]) -> float:
        """Return the loss at chance: the lowest mean loss, in nats, without looking at the documents.

        It is the entropy of the target distribution. A network whose loss stays there has only learnt the class
        frequencies.

        Args:
            counts: number of documents of each class, int64 [classes].
        """
        weighted = counts / counts.sum() * self.class_weights(len(counts))
        mass = float(weighted.sum())
        targets = (1 - self.smoothing) * weighted / mass + self.smoothing / len(counts)
        targets = targets[targets > 0]
        return -mass * float((targets * np.log(targets)).sum())


PLAIN = Objective()


def balanced(counts: npt.NDArray[np.int64]) -> tuple[float, ...]:
    """Return weights that give all classes equal influence and average 1 per document.

    The weight of a class is documents / (classes × documents of the class).
    """
    present = np.maximum(counts, 1)
    weights = counts.sum() / (np.count_nonzero(counts) * present)
    return tuple(weights.tolist())
