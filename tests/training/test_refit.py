"""Refit of the n-gram branch: bit-identical results, resumed runs, records, and runs without a refit."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import crepe_dist
from crepe_dist.files.safe_read import sha256
from crepe_dist.model import mxnet_params
from crepe_dist.runs import checkpoint
from crepe_dist.runs.run_dir_selection import lock_on_rank0
from crepe_dist.training import job
from tests import conftest
from tests.conftest import QUICK, needs_kernels
from tests.training.test_pseudo_labels import table

pytestmark = needs_kernels

SIZES = [*QUICK, "--precision=float32", "--optimizer=adam", "--state.save-steps=2", "--epochs=2"]


def prepared(folder: Path, *, several: bool = False, validation: Any = 0.3, **more: Any) -> Path:
    """Prepare 400 texts as ``data``. The test split has 80 texts."""
    rows, labels = table(400, 1, several=several), "multilabel" if several else "single"
    crepe_dist.prepare(rows, folder / "data", validation=validation, feature_len=48, labels=labels, **more)
    return folder


def train(folder: Path, name: str, *more: str, **how: Any) -> str:
    return conftest.train("--data", "data", "--run-dir", name, *SIZES, *more, cwd=folder, **how)


def result(run_dir: Path) -> dict[str, Any]:
    return json.loads((run_dir / "result.json").read_text())


def reported(run_dir: Path) -> tuple[Path, dict[str, Any]]:
    """Return the reported checkpoint of a run, and its metadata."""
    path = run_dir / result(run_dir)["checkpoint"]
    return path, checkpoint.read_metadata(path) or {}


def digest(run_dir: Path) -> str:
    return sha256(reported(run_dir)[0])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A prepared data set ``data``, and two runs that retain all files: ``run``, and ``off`` without a refit."""
    folder = prepared(tmp_path_factory.mktemp("refit"))
    train(folder, "run", "--logging.report=true", keeps_states=True)
    train(folder, "off", "--refit=false", keeps_states=True)
    return folder


def test_the_table_is_another_and_the_rest_stays(folder):
    (path, about), (before, first) = (reported(folder / name) for name in ("run", "off"))
    arrays, others = mxnet_params.read(path), mxnet_params.read(before)
    differing = {name for name in others if not np.array_equal(arrays[name], others[name])}
    assert differing
    assert all(name.startswith("ngrams.") for name in differing)
    assert about["calibration"] == first["calibration"]
    assert path.name.startswith(f"crepe_epoch_{first['epoch']}_test_acc_")
    assert crepe_dist.load(folder / "run").predict(["a1 n5"])


def test_validation_scores_are_those_before_and_test_scores_those_after(folder):
    (path, about), (_, first) = (reported(folder / name) for name in ("run", "off"))
    same = {name for name, value in first["metrics"].items() if about["metrics"][name] == value}
    assert {name for name in first["metrics"] if name.startswith("validation_")} <= same
    assert "test_loss" not in same
    assert (
        about["metrics"]["test_loss"]
        == checkpoint.read_scores(path)["test"].loss
        == result(folder / "run")["test_loss"]
    )
    made = result(folder / "run")["provenance"]["refit"]
    assert made == {"rows": 320, "test_accuracy": first["test_accuracy"]}
    assert "all 320 rows" in (folder / "run" / "model_card.md").read_text()


def test_a_finished_run_keeps_only_what_it_reports(folder):
    train(folder, "tidy")
    assert digest(folder / "tidy") == digest(folder / "run")
    assert not (folder / "tidy" / "refit").exists()
    assert list((folder / "tidy" / "checkpoints").glob("*.params")) == [reported(folder / "tidy")[0]]
    assert "is finished" in train(folder, "tidy")


def test_several_processes_give_the_same_bits(folder):
    train(folder, "with-3", processes=3)
    assert digest(folder / "with-3") == digest(folder / "run")


@pytest.mark.parametrize("lost", ["the end", "some of the table", "some of the network"])
def test_a_killed_run_resumes_to_the_same_bits(folder, lost):
    again = folder / lost.replace(" ", "-")
    shutil.copytree(folder / "run", again)
    reported(again)[0].unlink()
    shutil.copy(folder / "off" / "result.json", again)  # The state before the refit.
    if lost != "the end":
        shutil.rmtree(max((again / "refit" / "state").iterdir()))
    if lost == "some of the network":
        (again / "result.json").unlink()
        shutil.rmtree(max((again / "state").iterdir()))
    printed = train(folder, again.name)
    assert printed.count("resuming") == {"the end": 1, "some of the table": 1, "some of the network": 2}[lost]
    assert digest(again) == digest(folder / "run")


def test_a_run_that_another_process_has_refitted_meanwhile_is_only_reported(folder, monkeypatch):
    again = folder / "meanwhile"
    shutil.copytree(folder / "run", again)
    shutil.copy(folder / "off" / "result.json", again)  # The state before the refit.

    def lock(*arguments: Any) -> Any:
        shutil.copy(folder / "run" / "result.json", again)  # The other process ends, and releases the lock.
        return lock_on_rank0(*arguments)

    monkeypatch.setattr(job, "lock_on_rank0", lock)
    assert "refit     " not in train(folder, again.name)
    assert (again / "result.json").read_bytes() == (folder / "run" / "result.json").read_bytes()


def test_a_student_is_refitted_and_resumes_to_the_same_bits(tmp_path):
    prepared(tmp_path, unlabelled={"text": table(300, 2)["text"]})
    train(tmp_path, "run", keeps_states=True)
    made, bits = result(tmp_path / "run")["provenance"], digest(tmp_path / "run")
    assert made["refit"]["rows"] == 320 + 300 * (made["unlabelled"]["reported"] == "student")
    for left in (reported(tmp_path / "run")[0], tmp_path / "run" / "result.json"):
        left.unlink()
    shutil.rmtree(max((tmp_path / "run" / "refit" / "state").iterdir()))
    assert train(tmp_path, "run", processes=2).count("resuming") == 2
    assert digest(tmp_path / "run") == bits


def test_several_labels_keep_their_thresholds(tmp_path):
    prepared(tmp_path, several=True)
    train(tmp_path, "run")
    train(tmp_path, "off", "--refit=false")
    (_, about), (_, first) = (reported(tmp_path / name) for name in ("run", "off"))
    assert about["labels"] == first["labels"]
    assert about["sha256"] != first["sha256"]


@pytest.mark.parametrize(
    ("validation", "flags"),
    [(table(60, 3), ()), (0.0, ()), (0.3, ("--init-from=run",))],
)
def test_no_refit(tmp_path, folder, validation, flags):
    prepared(tmp_path, validation=validation)
    shutil.copytree(folder / "off", tmp_path / "run")
    train(tmp_path, "other", *flags)
    assert "refit" not in result(tmp_path / "other")["provenance"]
    if not isinstance(validation, float):
        train(tmp_path, "asked", "--refit")
        assert result(tmp_path / "asked")["provenance"]["refit"]["rows"] == 400 - 80 + 60
