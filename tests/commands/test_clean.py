"""Tests of `crepe clean`, which lists files that runs no longer need, and removes them with --yes."""

import fcntl
import multiprocessing
import os
import re
import signal
import tempfile
from contextlib import ExitStack
from functools import partial

import pytest

from crepe_dist.files.atomic_write import write_text
from crepe_dist.files.folders import TEMPORARY_PREFIX, list_abandoned, temporary_folder
from crepe_dist.files.json_file import write_json
from crepe_dist.runs import checkpoint, resume_state
from crepe_dist.runs.run_dir import RunDir
from crepe_dist.sealed_json import write_sealed_json
from tests.chaos.test_state_on_disk import snapshot
from tests.conftest import DEAD


def finished_run(path):
    """Make a finished run of four epochs with two saved states and temporary files. The second epoch is selected."""
    run = RunDir(path)
    (path / "checkpoints").mkdir(parents=True)
    for epoch in range(4):
        for suffix in ("params", "json", "scores.json"):
            write_text(path / "checkpoints" / f"crepe_epoch_{epoch}_test_acc_9{epoch}.5.{suffix}", suffix)
    write_json(path / "run.json", {"model": {}, "optimizer": {}, "training": {}, "data": "0"})
    resume_state.save(run.state, snapshot(2), resume_state.save(run.state, snapshot(1)))
    (run.state / ".partial-1").mkdir()
    write_text(run.state / ".partial-1" / "parameters.safetensors", "half")
    write_text(path / f".config.yaml.{DEAD}", "half")
    scores = {"chosen_by": "validation split", "test_accuracy": 0.9, "test_loss": 0.1}
    reported = "checkpoints/crepe_epoch_1_test_acc_91.5.params"
    result = {"checkpoint": reported, "epoch": 1, **scores, "provenance": {}}
    write_sealed_json(path / "result.json", checkpoint.RESULT_FORMAT, result)
    return run


@pytest.fixture
def cleaned(tmp_path, monkeypatch, printed_by):
    """Function that runs the command in a temporary folder and returns its output."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return partial(printed_by, "clean")


def test_it_lists_first_and_spares_runs_in_training_and_unfinished_ones(cleaned, tmp_path):
    done, busy, unfinished = (finished_run(tmp_path / "runs" / name) for name in ("done", "busy", "unfinished"))
    tuned = finished_run(tmp_path / "tune" / "data" / "trial-0003" / "run")
    (unfinished.path / "result.json").unlink()
    before = {path for path in tmp_path.rglob("*") if path.name != ".lock"}
    with busy.lock():
        listed = cleaned()
        assert {path for path in tmp_path.rglob("*") if path.name != ".lock"} == before
        assert re.search(r"\d kB +runs/done/state\n", listed)
        assert "another process is training in runs/busy" in listed
        assert "nothing was removed\n  do:  " in listed
        assert "clean --yes" in listed
        freed = cleaned("--yes")
    assert re.search(r"can be freed", listed)
    assert re.search(r"^[1-9][\d.]* kB freed$", freed, re.M)
    for run in (done, tuned):
        assert {path.name for path in run.path.iterdir()} == {"run.json", "result.json", "checkpoints", ".lock"}
        assert len(list((run.path / "checkpoints").iterdir())) == 6
    assert {path.name for path in unfinished.state.iterdir()} == {"step_00000001_0000", "step_00000002_0000"}
    assert len(list((unfinished.path / "checkpoints").iterdir())) == 12
    assert busy.state.is_dir()
    assert cleaned("runs/done") == "nothing to remove\n"


def test_it_spares_files_that_training_did_not_write(cleaned, tmp_path):
    run = finished_run(tmp_path / "runs" / "done").path
    other = finished_run(tmp_path / "runs" / "other program").path
    write_text(other / "run.json", '{"state": "of another program"}')
    (run / "checkpoints" / "crepe_epoch_mine").mkdir()
    write_text(run / "checkpoints" / "crepe_epoch_0.onnx", "mine")
    before = set(other.rglob("*"))
    cleaned("--yes", "runs", str(run))
    assert set(other.rglob("*")) == before
    assert {"crepe_epoch_mine", "crepe_epoch_0.onnx"} < {path.name for path in (run / "checkpoints").iterdir()}
    assert not (run / "state").exists()


def test_temporary_folders_of_killed_processes(cleaned, tmp_path):
    """The next command removes the folder of a killed process, and no folder that is in use."""

    def leave():
        with temporary_folder() as folder:
            write_text(folder / "left", "x")
            os.kill(os.getpid(), signal.SIGKILL)

    process = multiprocessing.get_context("fork").Process(target=leave)
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    (left,) = tmp_path.glob("crepe-scratch-*")
    assert list_abandoned() == []  # A new folder may not be locked yet.
    os.utime(left, (0, 0))
    with temporary_folder() as used:
        assert not left.exists()
        os.utime(used, (0, 0))
        assert list_abandoned() == []
    assert not used.exists()
    write_text(tmp_path / "elsewhere", "x")
    (tmp_path / f"{TEMPORARY_PREFIX}link").symlink_to(tmp_path)
    os.utime(tmp_path / f"{TEMPORARY_PREFIX}link", (0, 0), follow_symlinks=False)
    assert list_abandoned() == []


def test_the_cache_without_what_a_process_is_writing(cleaned, tmp_path):
    """Copies of models, incomplete copies and incomplete predictions are removed, but only if no folder is passed."""
    cache = tmp_path / "cache" / "crepe_dist"
    (tmp_path / "named").mkdir()
    (cache / "models").mkdir(parents=True)
    names = ("models/1f2e/model.json", "models/crepe-scratch-left/part", "predictions/left/a", "predictions/busy/.lock")
    with temporary_folder(cache / "models") as copying, ExitStack() as stack:
        for name in names:
            (cache / name).parent.mkdir(parents=True)
            write_text(cache / name, "x" * 100)
            os.utime((cache / name).parent, (0, 0))
        lock = stack.enter_context((cache / names[-1]).open())
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert cleaned("named", "--yes") == "nothing to remove\n"
        assert cleaned().splitlines()[-2].startswith("300 B can be freed")
        cleaned("--yes")
        assert [*(cache / "models").iterdir()] == [copying]
    assert [path.name for path in (cache / "predictions").iterdir()] == ["busy"]
