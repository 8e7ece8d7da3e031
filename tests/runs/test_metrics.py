"""Records of the metrics of a run, and the history that is read from the records."""

import pytest

from crepe_dist.runs.metrics import MAX_POINTS, History, loss_of


def test_the_loss_of_a_split():
    assert loss_of({"validation_loss": 1.0, "validation_loss_error": 0.5}, "validation") == (1.0, 0.5)
    assert loss_of({"test_loss": 1.0}, "test") == (1.0, 0.0)
    assert loss_of({}, "test") == loss_of({"test_loss": float("nan")}, "test") == (float("inf"), 0.0)


def test_a_long_run_is_thinned():
    history = History()
    for step in range(1, 20_001):
        history.add({"event": "step", "step": step, "loss": float(step % 2)})
    assert MAX_POINTS < len(history.points) <= 2 * MAX_POINTS
    assert history.points[-1].step == 20_000
    assert sum(point.count for point in history.points) == 20_000
    assert all(point.low == 0 and point.high == 1 for point in history.points)
    assert history.points[0].mean == pytest.approx(0.5)
