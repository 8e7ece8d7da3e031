"""Records of the metrics of a run, and the history that is read from the records."""

import pytest

from crepe_dist.runs.metrics import MAX_POINTS, History


def test_a_long_run_is_thinned():
    history = History()
    for step in range(1, 20_001):
        history.add({"event": "step", "step": step, "loss": float(step % 2)})
    assert MAX_POINTS < len(history.points) <= 2 * MAX_POINTS
    assert history.points[-1].step == 20_000
    assert sum(point.count for point in history.points) == 20_000
    assert history.points[0].mean == pytest.approx(0.5)
