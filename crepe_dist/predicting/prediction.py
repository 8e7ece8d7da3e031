"""A predictor's answer for one text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Prediction:
    """What one text was taken for.

    Attributes:
        label: the most probable class.
        probability: its probability, 0 to 1.
        ranking: (class, probability), the most probable first.
        read: characters of the text, spaces apart, that the network has read and knows; where there is none, the answer
            means nothing.
    """

    label: str
    probability: float
    ranking: tuple[tuple[str, float], ...]
    read: int

    def record(self, top: int) -> dict[str, Any]:
        """What programs get to read, with the first ``top`` classes."""
        return {
            "class": self.label,
            "probability": self.probability,
            "top": [{"class": label, "probability": probability} for label, probability in self.ranking[:top]],
            "read": self.read,
        }
