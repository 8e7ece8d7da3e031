"""Crash reports: an unexpected failure writes one, prints its path, and stays visible."""

from __future__ import annotations

import json

from tests.chaos import harness


def test_one_rank_of_two(data, tmp_path, monkeypatch):
    monkeypatch.setenv("CREPE_DIST_API_TOKEN", "not to be told")
    run_dir = tmp_path / "run"
    fault = {"kind": "raise", "rank": 1, "phase": "train", "step": 15, "once": str(tmp_path / "once")}
    code, printed = harness.run(harness.command(run_dir, data, 2), tmp_path, fault)
    assert code == 1, printed  # of horovodrun
    assert printed.count("unexpected failure: RuntimeError: a mistake nobody foresaw") == 1, printed
    assert f"the report is in {run_dir}/crash-report.json" in printed
    assert "faulty_sum" not in printed  # a line of the traceback
    assert len(list(tmp_path.rglob("crash-report*"))) == 1
    text = (run_dir / "crash-report.json").read_text()
    assert "not to be told" not in text
    report = json.loads(text)
    assert (report["rank"], report["size"], report["exit_code"]) == (1, 2, 70)
    assert "with a second line" in report["traceback"]
    assert "faulty_sum" in report["traceback"]
    assert report["stacks"].keys() == {"rank_0", "rank_1"}
    assert 'File "' in report["stacks"]["rank_0"]  # where it waited for rank 1
    assert "a mistake nobody foresaw" in report["stacks"]["rank_1"]
    assert {"step", "loss", "learning_rate"} <= report["last_steps"][-1].keys()
    assert report["config"]["training"]["epochs"] == 3
    assert report["machine"]["cores"]
    assert report["environment"]["HOROVOD_SIZE"] == "2"
