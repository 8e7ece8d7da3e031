"""Prediction for one text."""

import math
from typing import Any, NamedTuple

# Error for a non-empty text without any character of the alphabet.
NO_KNOWN_CHARACTERS = "no character that the network knows"
REJECTED = "none of these"  # Displayed instead of the class if a prediction is rejected.


class Prediction(NamedTuple):
    """Prediction for one text.

    Attributes:
        label: Most probable class. If the training labels were numbers or bools in a data frame, ``Predictor.predict``
            returns numbers or bools in ``label``, ``ranking`` and ``labels``.
        probability: Probability of ``label``, 0 to 1.
        ranking: (class, probability) pairs of all classes. The most probable class comes first.
        characters_read: Number of known characters that the network read, without spaces.
        error: Reason why the text cannot be classified, such as "empty text". Empty if the text was classified. If
            there is an error, ``label`` and ``probability`` are meaningless, and ``characters_read`` is 0. The command
            ``predict`` writes the error instead of the class.
        rejected: True if ``probability`` is below the predictor's threshold. In this case, it is possible that none of
            the classes is correct.
        labels: Predicted labels of a multilabel model. The most probable label comes first. ``None`` for a
            single-label model.
        characters_truncated: Number of characters that were not read because the text is too long.
    """

    label: Any
    probability: float
    ranking: tuple[tuple[Any, float], ...]
    characters_read: int
    error: str = ""
    rejected: bool = False
    labels: tuple[Any, ...] | None = None
    characters_truncated: int = 0

    @property
    def entropy(self) -> float:
        """Entropy of the probabilities in nats: 0 if one class is certain, log(classes) if all are equally probable.

        For a multilabel model, it is the sum of the binary entropies of all classes.
        """
        probabilities = [probability for _, probability in self.ranking]
        if self.labels is not None:
            return sum(
                -p * math.log(p) for probability in probabilities for p in (probability, 1 - probability) if p > 0
            )
        return -sum(p * math.log(p) for p in probabilities if p > 0)

    @property
    def margin(self) -> float:
        """Probability of ``label`` minus the probability of the second class in ``ranking``, 0 to 1."""
        return self.probability - (self.ranking[1][1] if len(self.ranking) > 1 else 0.0)

    def probability_of(self, label: Any) -> float:
        """Return the probability of a class."""
        return next(probability for name, probability in self.ranking if name == label)
