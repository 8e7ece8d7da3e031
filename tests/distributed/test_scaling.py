"""Scaling benchmark: workers with and without Horovod answer, and their failures become user errors."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import mxnet as mx
import pytest

from crepe_dist.benchmarking import scaling, suite, workers
from crepe_dist.benchmarking.suite import TINY, shape_of
from crepe_dist.benchmarking.workers import Workers
from crepe_dist.errors import UserError

pytestmark = pytest.mark.skipif(bool(scaling.obstacle()), reason=scaling.obstacle() or "can be measured")


@pytest.mark.slow
def test_two_processes_with_and_without_horovod():
    result = scaling.run(shape_of(TINY), batch=4, rounds=1, seconds=0.01)
    rows = {(row["scaling"], row["processes"]): row for row in result["table"]}
    assert {("none", 1), ("weak", 2), ("strong", 2)} <= set(rows)
    assert rows["weak", 2]["batch"] == 4
    assert rows["strong", 2]["batch"] == 2
    assert all(row[name] > 0 for row in rows.values() for name in ("rate", "independent", "ratio", "efficiency"))
    assert rows["weak", 2]["ratio"] == scaling.weak_ratio(result, 2)
    assert result["gradient_bytes"] > 0
    assert result["allreduce_ms"][2] > 0


def test_a_worker_that_does_not_start():
    with pytest.raises(UserError, match="failed") as raised:
        Workers([[sys.executable, "-c", "print('no such luck')"]], 1, os.environ)
    assert "no such luck" in raised.value.why


def test_workers_that_never_connect_are_ended(monkeypatch):
    monkeypatch.setattr(workers, "START_SECONDS", 0.0)
    monkeypatch.setattr(workers, "END_SECONDS", 0.0)
    start = time.monotonic()
    with pytest.raises(UserError) as raised:
        Workers([[sys.executable, "-c", "import time; time.sleep(60)"]], 1, os.environ)
    assert "did not start" in raised.value.why
    assert time.monotonic() - start < 30


def test_a_worker_that_ends_when_asked():
    answers = (
        "from crepe_dist.benchmarking.workers import serve; import sys; serve(sys.argv[1], 0, lambda: {'go': dict})"
    )
    with Workers([[sys.executable, "-c", answers]], 1, os.environ) as alone:
        assert alone.ask("go", value=3) == [{"value": 3}]
        with pytest.raises(UserError) as raised:
            alone.ask("stop")
    assert "KeyError: 'stop'" in raised.value.why


def test_it_is_left_out_with_a_reason(monkeypatch):
    said: list[str] = []
    monkeypatch.setattr(scaling, "horovodrun", lambda: None)
    assert suite._scaling(shape_of(TINY), TINY, mx.cpu(), said.append, 9) == {"skipped": "Horovod is not installed"}
    assert said == ["scaling is skipped: Horovod is not installed"]
    monkeypatch.setattr(scaling, "horovodrun", lambda: Path("horovodrun"))
    monkeypatch.setattr(scaling, "run", lambda *arguments: time.sleep(60))
    found = suite._scaling(shape_of(TINY), TINY, mx.cpu(), said.append, 0.1)
    assert found == {"skipped": "not finished in 0 s"}
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0})
    assert scaling.obstacle() == "there is only one core"
    assert scaling.obstacle("gpu") == "there is only one GPU"  # or none
