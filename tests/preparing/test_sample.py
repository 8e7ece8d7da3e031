"""The sample: preparation, and training with the defaults, which takes minutes and needs `-m slow`."""

import json
import re
import shlex
from pathlib import Path

import pytest

import crepe_dist
from crepe_dist.preparing.preparation import SAMPLE_SPLIT
from tests.conftest import command, run

DOCS = Path(__file__).resolve().parents[2] / "docs" / "how-to"


@pytest.mark.slow
def test_the_sample_is_learnt_and_the_answers_in_the_guides_are_its_own(tmp_path):
    printed = run(command("train", processes=2), tmp_path)
    assert "2 processes" in printed
    (run_dir,) = (tmp_path / "runs").iterdir()
    result = json.loads((run_dir / "result.json").read_text())
    assert result["test_accuracy"] >= 0.94
    run(command("evaluate", "--json", "scores.json"), tmp_path)
    assert json.loads((tmp_path / "scores.json").read_text())["accuracy"] == result["test_accuracy"]
    predict = (DOCS / "predict.md").read_text(encoding="utf-8")
    (flags, shown), *_ = re.findall(r"^    crepe predict (--text .*)\n(?:.*\n)+?    (.* %)\n", predict, re.MULTILINE)
    assert_near(run(command("predict", *shlex.split(flags)), tmp_path).splitlines()[0], shown)
    (in_table,) = re.findall(r"^\| `text` \| `(.*?)`", predict, re.MULTILINE)
    assert shown.startswith(in_table)
    serve = (DOCS / "serve.md").read_text(encoding="utf-8")
    (asked, answer), *_ = re.findall(r"/predict .* -d '(.*)'\n\n    (.*)\n", serve)
    text = json.loads(asked)["text"]
    got = json.loads(run(command("predict", "--text", text, "--format", "jsonl"), tmp_path))
    expected = json.loads(answer.replace(", …", ""))
    assert (got["class"], got["read"]) == (expected["class"], expected["read"])
    assert [got[key] for key in ("probability", "entropy", "margin")] == pytest.approx(
        [expected[key] for key in ("probability", "entropy", "margin")], abs=0.08
    )


def assert_near(got: str, shown: str) -> None:
    """Compare the class, and its probability within five points, because rounding depends on the processor."""
    (name, percent), (expected, near) = (re.findall(r"(\D+) (\d+\.\d) %", line)[0] for line in (got, shown))
    assert name == expected
    assert float(percent) == pytest.approx(float(near), abs=5)


def test_the_sample_is_prepared_without_warnings(tmp_path):
    report = crepe_dist.prepare("sample", tmp_path / "sample")
    assert report["warnings"] == []
    assert report["rows"]["kept"] == 23_449
    assert SAMPLE_SPLIT.dedupe == "near"
