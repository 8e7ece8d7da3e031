"""Prediction for one text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Prediction:
    """Prediction for one text.

    Attributes:
        label: the most probable class.
        probability: probability of ``label``, 0 to 1.
        ranking: all (class, probability) pairs, the most probable first.
        read: number of known characters that the network read, without spaces.
        problem: reason why the text cannot be classified, such as "empty text"; empty if it can. If it cannot, ``read``
            is 0 and the class is meaningless. The command ``predict`` gives the reason instead of the class.
    """

    label: str
    probability: float
    ranking: tuple[tuple[str, float], ...]
    read: int
    problem: str = ""

    def record(self, top: int) -> dict[str, Any]:
        """Convert to JSON-able data with the ``top`` most probable classes."""
        return {
            "class": self.label,
            "probability": self.probability,
            "top": [{"class": label, "probability": probability} for label, probability in self.ranking[:top]],
            "read": self.read,
        }
