"""Scores of a split: computed from counts, and read from files."""

import numpy as np
import pytest

from crepe_dist.model.calibration import HIGHEST, INTERVALS, PER_UNIT, interval_threshold, to_intervals
from crepe_dist.runs.scores import (
    BINS,
    MILLION,
    MulticlassScores,
    average_precision,
    choose_thresholds,
    confusion_at_thresholds,
)


def test_calibration_error_by_hand():
    reliability = np.zeros((BINS, 3), np.int64)
    reliability[-1] = 80, 60, 76 * MILLION  # says 95 %, is right in 75 %
    reliability[7] = 20, 10, 10 * MILLION  # says 50 %, is right in 50 %
    scores = MulticlassScores(np.array([[60, 20], [10, 10]]), 1.0, reliability, [])
    assert scores.calibration_error == pytest.approx(0.8 * 0.2)
    assert scores.accuracy == 0.7
    assert scores.f1.tolist() == pytest.approx([120 / 150, 20 / 50])


def test_thresholds_are_chosen_by_f1():
    generator = np.random.default_rng(1)
    logits = generator.normal(0, 3, (500, 2)).astype(np.float32)
    logits[0, 0], logits[1, 1] = 100, -100
    wanted = logits + generator.normal(0, 1, logits.shape) > np.array([1.0, 20])  # nothing has the second label
    histogram = np.zeros((2, INTERVALS, 2), np.int64)
    np.add.at(histogram, (np.broadcast_to([0, 1], logits.shape), to_intervals(logits), wanted.astype(int)), 1)
    thresholds, edges = choose_thresholds(histogram), interval_threshold(np.arange(1, INTERVALS))

    def f1(threshold: float, which: list[int]) -> float:
        predicted = logits[:, which] >= np.log(threshold / (1 - threshold))
        return 2 * (predicted & wanted[:, which]).sum() / max(1, predicted.sum() + wanted[:, which].sum())

    assert f1(thresholds[0], [0]) > 0.99 * max(f1(edge, [0]) for edge in edges)
    assert f1(thresholds[1], [0, 1]) == max(f1(edge, [0, 1]) for edge in edges)  # that of both together
    counts = confusion_at_thresholds(histogram, thresholds)
    predicted = logits >= np.log(thresholds / (1 - thresholds))
    assert counts[:, 0].tolist() == (predicted & wanted).sum(axis=0).tolist()
    assert counts.sum(axis=1).tolist() == (predicted | wanted).sum(axis=0).tolist()
    hits = wanted[np.argsort(-logits[:, 0], kind="stable"), 0]
    exact = (np.cumsum(hits) / np.arange(1, 501))[hits].mean()
    assert average_precision(histogram)[0] == pytest.approx(exact, abs=0.01)
    assert interval_threshold(np.array([HIGHEST * PER_UNIT])) == 0.5
