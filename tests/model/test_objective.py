"""The training objective, and the warning for a loss that stays at chance."""

from __future__ import annotations

import numpy as np
import pytest

from crepe_dist.model.objective import Objective, balanced
from crepe_dist.settings.config import parse
from crepe_dist.training.not_learning import STEPS, WINDOW, NotLearning

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


class TestNotLearning:
    def said(self, losses, *flags, has_plateau=True):
        watch = NotLearning(1.0, parse(["--epochs=5", *flags]), has_plateau)
        found = {step: watch.look(step, loss) for step, loss in enumerate(losses, 1)}
        return {step: line for step, line in found.items() if line}, watch

    def test_a_run_that_learns_hears_nothing(self):
        said, watch = self.said(np.linspace(1.0, 0.5, 2 * STEPS))
        assert said == {}
        assert watch.end(2 * STEPS) is None

    def test_a_plateau_is_said_once_and_so_is_its_end(self):
        said, watch = self.said([1.0] * (2 * STEPS) + [0.7] * WINDOW)
        first, last = said.items()
        assert first[0] == STEPS
        assert "not learning: after" in first[1]
        assert "--overfit-batches 2" in first[1]
        assert 2 * STEPS < last[0] < 2 * STEPS + WINDOW
        assert "has started to learn" in last[1]
        assert watch.end(2 * STEPS + WINDOW) is None

    def test_a_short_run_hears_it_at_its_end(self):
        _, watch = self.said([1.0] * 40)
        assert "after 40 steps" in (watch.end(40) or "")

    @pytest.mark.parametrize(
        ("loss", "flags", "advice"),
        [
            (1.0, ["--optimizer=sgd"], "--optimizer adam"),
            (1.0, ["--initialisation=paper"], "--initialisation xavier"),
            (1.0, ["--learning-rate=0.1"], "--learning-rate 0.01"),
            (1.0, ["--dropout=0.9"], "--dropout 0.5"),
            (3.0, [], "--clip-norm 1"),
        ],
    )
    def test_what_it_advises_depends_on_the_settings(self, loss, flags, advice):
        said, _ = self.said([loss] * STEPS, *flags)
        assert advice in said[STEPS]

    def test_of_n_grams_it_advises_what_they_have(self):
        flags = ("--initialisation=paper", "--dropout=0.9", "--optimizer=sgd")
        advice = self.said([1.0] * STEPS, *flags, has_plateau=False)[0][STEPS]
        for setting in ("--optimizer adam", "--overfit-batches 2", "--alphabet auto", "--epochs 10"):
            assert setting in advice
        for convolutions in ("initialisation", "dropout", "plateau", "thousand"):
            assert convolutions not in advice
