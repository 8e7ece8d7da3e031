"""Loss of training."""

import numpy as np
import pytest

from crepe_dist.model.loss import balanced_weights

COUNTS = np.array([50, 30, 20])


def test_balanced_weights_make_every_class_count_the_same_and_a_document_1_on_average():
    weights = np.array(balanced_weights(COUNTS))
    assert COUNTS * weights == pytest.approx([100 / 3] * 3)
    assert balanced_weights(np.array([4, 0, 4])) == (1.0, 1.0, 1.0)
