"""Scores of a split, computed from counts, and read from files."""

from __future__ import annotations

import numpy as np
import pytest

from crepe_dist.runs.scores import BINS, MILLION, Scores


def test_scores_of_earlier_versions_are_read():
    scores = Scores(np.eye(2, dtype=np.int64), 0.5, np.zeros((15, 3), np.int64), [], uncalibrated_loss=0.7)
    assert Scores.of(scores.to_dict()).uncalibrated_loss == 0.7
    old = Scores.of(scores.to_dict("uncalibrated_loss"))
    assert (old.loss, old.uncalibrated_loss, "uncalibrated_loss" in old.metrics()) == (0.5, None, False)


def test_calibration_error_by_hand():
    reliability = np.zeros((BINS, 3), np.int64)
    reliability[-1] = 80, 60, 76 * MILLION  # says 95 %, is right in 75 %
    reliability[7] = 20, 10, 10 * MILLION  # says 50 %, is right in 50 %
    scores = Scores(np.array([[60, 20], [10, 10]]), 1.0, reliability, [])
    assert scores.calibration_error == pytest.approx(0.8 * 0.2)
    assert scores.accuracy == 0.7
    assert scores.f1.tolist() == pytest.approx([120 / 150, 20 / 50])
