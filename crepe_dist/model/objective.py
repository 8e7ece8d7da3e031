"""What training makes small: cross-entropy, with smoothed labels and weighted classes where they are asked for."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Objective:
    """A document's loss is weight of its class × cross-entropy with (1 - smoothing) × label + smoothing / classes.

    Attributes:
        smoothing: share of the target that is spread over all classes (Szegedy et al. 2016, arXiv:1512.00567, section
            7), 0 to below 1.
        weights: one a class, in their order; empty: all are 1.
    """

    smoothing: float = 0.0
    weights: tuple[float, ...] = ()

    def class_weights(self, classes: int) -> npt.NDArray[np.float32]:
        """float32 [classes].

        Raises:
            ValueError: there are weights, but not that many.
        """
        if self.weights and len(self.weights) != classes:
            raise ValueError(f"{len(self.weights)} weights for {classes} classes")
        return np.array(self.weights or [1.0] * classes, dtype=np.float32)

    def of_ignorance(self, counts: npt.NDArray[np.int64]) -> float:
        """The lowest mean loss, in nats, of predictions that do not look at the documents.

        It is the entropy of the targets' distribution: a network whose loss stays there has learnt how frequent the
        classes are and nothing else.

        Args:
            counts: documents of each class, int64 [classes].
        """
        weighted = counts / counts.sum() * self.class_weights(len(counts))
        mass = float(weighted.sum())
        targets = (1 - self.smoothing) * weighted / mass + self.smoothing / len(counts)
        targets = targets[targets > 0]
        return -mass * float((targets * np.log(targets)).sum())


PLAIN = Objective()


def balanced(counts: npt.NDArray[np.int64]) -> tuple[float, ...]:
    """Weights under which every class counts the same, and a document 1 on average: documents / (classes × count)."""
    present = np.maximum(counts, 1)
    weights = counts.sum() / (np.count_nonzero(counts) * present)
    return tuple(weights.tolist())
