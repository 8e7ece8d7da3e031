"""Loss of training."""

import numpy as np
import pytest

from crepe_dist.model.loss import Loss, balanced_weights

COUNTS = np.array([50, 30, 20])


@pytest.mark.parametrize("objective", [Loss(), Loss(0.2), Loss(0.1, (1.0, 4.0, 0.5))])
def test_ignorance_is_the_best_that_one_prediction_for_all_can_do(objective):
    """Compute the mean loss of the documents of ``COUNTS`` by the definition."""
    logs = np.log(np.random.default_rng(0).dirichlet(np.ones(3), size=20_000))
    targets = (1 - objective.smoothing) * np.eye(3) + objective.smoothing / 3
    best = (-(COUNTS * objective.class_weights(3)) @ targets @ logs.T).min() / COUNTS.sum()
    ignorance = objective.class_prior_loss(COUNTS, 100)
    assert ignorance <= best < ignorance + 0.001


def test_balanced_weights_make_every_class_count_the_same_and_a_document_1_on_average():
    weights = np.array(balanced_weights(COUNTS))
    assert COUNTS * weights == pytest.approx([100 / 3] * 3)
    assert balanced_weights(np.array([4, 0, 4])) == (1.0, 1.0, 1.0)
