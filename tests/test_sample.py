"""The sample, prepared; and trained on with the defaults, which takes minutes, so it runs with `-m slow`."""

from __future__ import annotations

import json

import pytest

import crepe_dist
from crepe_dist.training.training_data import SAMPLE_SPLIT
from tests.conftest import command, run


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_sample_is_learnt(tmp_path):
    printed = run(command("train", processes=2), tmp_path, seconds=1500)
    assert "2 processes" in printed
    (run_dir,) = (tmp_path / "runs").iterdir()
    result = json.loads((run_dir / "result.json").read_text())
    assert result["test_accuracy"] >= 0.75  # the most frequent class has 0.45
    run(command("evaluate", "--json", "scores.json"), tmp_path)
    assert json.loads((tmp_path / "scores.json").read_text())["accuracy"] == result["test_accuracy"]
    (answer,) = run(command("predict"), tmp_path, stdin="what a wonderful little film\n").splitlines()
    assert answer.startswith("movie review")


def test_the_sample_is_prepared_without_warnings(tmp_path):
    report = crepe_dist.prepare("sample", tmp_path / "sample")
    assert report["warnings"] == []
    assert report["rows"]["kept"] == 23_449
    assert SAMPLE_SPLIT.dedupe == "near"
