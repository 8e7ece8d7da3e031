"""Crash reports: an unexpected failure writes one, prints its path, and stays visible."""

from __future__ import annotations

from tests.chaos import harness


def test_one_rank_of_two(data, tmp_path):
    run_dir = tmp_path / "run"
    fault = {"kind": "raise", "rank": 1, "phase": "train", "step": 15, "once": str(tmp_path / "once")}
    code, printed = harness.run(harness.command(run_dir, data, 2), tmp_path, fault)
    assert code == 1, printed  # of horovodrun
    assert printed.count("unexpected failure: RuntimeError: a mistake nobody foresaw") == 1, printed
    assert f"the traceback is in {run_dir}/crash-report-rank1.txt" in printed
    assert "faulty" not in printed  # a line of the traceback
    (report,) = tmp_path.rglob("crash-report*")
    text = report.read_text()
    assert "faulty" in text
    assert "with a second line" in text
    assert "rank 1 of 2" in text
    assert '"step": 1' in text
    assert '"epochs": 3' in text
