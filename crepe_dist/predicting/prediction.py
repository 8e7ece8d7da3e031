"""Prediction for one text."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

UNKNOWN = "no character that the network knows"  # problem of a text that is not empty
NONE = "none of these"  # shown instead of the class of a rejected text


class Prediction(NamedTuple):
    """Prediction for one text.

    Attributes:
        label: the most probable class. If the classes form a tree and a precision is requested, it may be a node above
            the classes. If the labels of the training were numbers or bools in a table in memory,
            ``Predictor.predict`` returns such numbers or bools, also in ``ranking`` and ``labels``.
        probability: probability of ``label``, 0 to 1.
        ranking: all (class, probability) pairs, the most probable first.
        read: number of known characters that the network read, without spaces.
        characters_cut: number of characters that were not read, because the text is too long.
        labels: labels of the text, the most probable first, if the model gives several; ``None`` if it gives one class.
        problem: reason why the text cannot be classified, such as "empty text"; empty if it can. If it cannot, the
            class is meaningless. ``read`` is 0 then, unless a number in a column beside the text is unusable. The
            command ``predict`` gives the reason instead of the class.
        rejected: true if ``probability`` is below the predictor's threshold: perhaps none of the classes fits.
    """

    label: Any
    probability: float
    ranking: tuple[tuple[Any, float], ...]
    read: int
    problem: str = ""
    rejected: bool = False
    labels: tuple[Any, ...] | None = None
    characters_cut: int = 0

    @property
    def entropy(self) -> float:
        """Entropy of the probabilities in nats: 0 if the class is certain, log(classes) if all are equally probable.

        Of several labels, it is the sum of the entropies of all classes.
        """
        if self.labels is not None:
            return sum(-p * math.log(p) for _, share in self.ranking for p in (share, 1 - share) if p > 0)
        return -sum(share * math.log(share) for _, share in self.ranking if share > 0)

    @property
    def margin(self) -> float:
        """Probability of ``label`` minus the probability of the second class, 0 to 1.

        ``label`` may be a node above the classes.
        """
        return self.probability - (self.ranking[1][1] if len(self.ranking) > 1 else 0.0)

    def probability_of(self, label: Any) -> float:
        """Return the probability of a class."""
        return next(share for name, share in self.ranking if name == label)
