"""The training objective."""

from __future__ import annotations

import numpy as np
import pytest

from crepe_dist.model.objective import Objective, balanced

COUNTS = np.array([50, 30, 20])


def loss_of(objective: Objective, prediction: np.ndarray) -> float:
    """Mean over the documents of ``COUNTS``, by the definition."""
    weights, classes = objective.class_weights(len(COUNTS)), len(COUNTS)
    targets = (1 - objective.smoothing) * np.eye(classes) + objective.smoothing / classes
    return float(-(COUNTS * weights * (targets @ np.log(prediction))).sum() / COUNTS.sum())


@pytest.mark.parametrize("objective", [Objective(), Objective(0.2), Objective(0.1, (1.0, 4.0, 0.5))])
def test_ignorance_is_the_best_that_one_prediction_for_all_can_do(objective):
    generator = np.random.default_rng(0)
    best = min(loss_of(objective, each) for each in generator.dirichlet(np.ones(3), size=20_000))
    ignorance = objective.chance_loss(COUNTS, 100)
    assert ignorance <= best < ignorance + 0.001


def test_balanced_weights_make_every_class_count_the_same_and_a_document_1_on_average():
    weights = np.array(balanced(COUNTS))
    assert COUNTS * weights == pytest.approx([100 / 3] * 3)
    assert balanced(np.array([4, 0, 4])) == (1.0, 1.0, 1.0)
