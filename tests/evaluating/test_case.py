"""Accuracy on texts that are typed in lower case or in capitals."""

import json

import pytest

import crepe_dist
from tests.conftest import needs_kernels

pytestmark = needs_kernels


@pytest.mark.parametrize(("mode", "views"), [("marked", {"lower", "upper"}), ("paper", set())])
def test_the_accuracy_in_another_case_is_shown_and_a_loss_is_a_warning(tmp_path, printed_by, monkeypatch, mode, views):
    """Only capital letters distinguish the classes, so half of the texts in lower case are classified wrongly."""
    rows = [f"{'ab'[n % 2]},{('THE WHITE HOUSE', 'the white house')[n % 2]} {n}" for n in range(400)]
    (tmp_path / "rows.csv").write_text("\n".join(["label,text", *rows]))
    crepe_dist.prepare(tmp_path / "rows.csv", tmp_path / "data", mode=mode)
    monkeypatch.setattr("crepe_dist.training.context.CASE_NOISE", 0)
    flags = ("--model=ngrams", "--epochs=3", "--logging.report=false")
    printed_by("train", tmp_path / "data", f"--run-dir={tmp_path / 'run'}", *flags)
    printed = printed_by("evaluate", tmp_path / "run", f"--json={tmp_path / 'scores.json'}")
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert set(scores["case"]) == views
    assert ("in capitals: accuracy" in printed) == bool(views)
    assert ("warning: the accuracy in lower case" in printed) == bool(views)
    if views:
        assert scores["accuracy"] > 0.9 > 0.7 > scores["case"]["lower"]["accuracy"]
