"""Records of the metrics of a run, and the history that is read from the records."""

import pytest

from crepe_dist.runs.metrics import MAX_POINTS, History, loss_of


def test_the_loss_of_a_split():
    assert loss_of({"validation_loss": 1.0, "validation_loss_error": 0.5}, "validation") == (1.0, 0.5)
    assert loss_of({"test_loss": 1.0}, "test") == (1.0, 0.0)
    assert loss_of({}, "test") == loss_of({"test_loss": float("nan")}, "test") == (float("inf"), 0.0)


def test_times_of_ranks_are_averaged_until_the_ranks_change():
    history = History()
    for steps, hosts, compute in ((1, ["a", "b"], [2.0, 2.0]), (3, ["a", "b"], [6.0, 10.0]), (9, ["a"], [1.0])):
        others = {"data_ms": [0.0] * len(hosts), "exchange_ms": [1.0] * len(hosts)}
        record = {"event": "ranks", "step": 1, "steps": steps, "hosts": hosts, "compute_ms": compute, **others}
        history.add(record)
        if steps == 3:
            assert history.rank_times == {"compute_ms": [5.0, 8.0], "data_ms": [0.0, 0.0], "exchange_ms": [1.0, 1.0]}
    assert history.hosts == ["a"]
    assert history.rank_times == {"compute_ms": [1.0], "data_ms": [0.0], "exchange_ms": [1.0]}


def test_a_long_run_is_thinned():
    history = History()
    for step in range(1, 20_001):
        history.add({"event": "step", "step": step, "loss": float(step % 2)})
    assert MAX_POINTS < len(history.points) <= 2 * MAX_POINTS
    assert history.points[-1].step == 20_000
    assert sum(point.count for point in history.points) == 20_000
    assert all(point.low == 0 and point.high == 1 for point in history.points)
    assert history.points[0].mean == pytest.approx(0.5)
