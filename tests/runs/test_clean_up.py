"""Files that a finished run no longer needs, and temporary folders of killed processes, are removed."""

import multiprocessing
import os
import signal
import tempfile

from crepe_dist.files.atomic_write import write_text
from crepe_dist.files.folders import TEMPORARY_PREFIX, list_abandoned, temporary_folder
from crepe_dist.files.json_file import write_json
from crepe_dist.runs import checkpoint, resume_state
from crepe_dist.runs.run_dir import RunDir
from crepe_dist.sealed_json import write_sealed_json
from crepe_dist.settings.config import parse
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


def test_a_finished_run_and_an_unfinished_one(tmp_path):
    done, unfinished = (finished_run(tmp_path / name) for name in ("done", "unfinished"))
    (unfinished.path / "result.json").unlink()
    for run in (done, unfinished):
        run.clean_up()
    assert {path.name for path in done.path.iterdir()} == {"run.json", "result.json", "checkpoints"}
    assert len(list((done.path / "checkpoints").iterdir())) == 6
    assert {path.name for path in unfinished.state.iterdir()} == {"step_00000001_0000", "step_00000002_0000"}
    assert len(list((unfinished.path / "checkpoints").iterdir())) == 12


def test_a_run_that_keeps_all_epochs_keeps_their_checkpoints(tmp_path):
    run = finished_run(tmp_path / "done")
    write_text(run.path / "config.yaml", parse(["--keep-epochs=all"]).to_yaml())
    run.clean_up()
    assert not run.state.exists()
    assert len(list((run.path / "checkpoints").glob("*.params"))) == 4


def test_it_spares_files_that_training_did_not_write(tmp_path):
    run = finished_run(tmp_path / "done")
    (run.path / "checkpoints" / "crepe_epoch_mine").mkdir()
    write_text(run.path / "checkpoints" / "crepe_epoch_0.onnx", "mine")
    run.clean_up()
    assert {"crepe_epoch_mine", "crepe_epoch_0.onnx"} < {path.name for path in (run.path / "checkpoints").iterdir()}
    assert not run.state.exists()


def test_temporary_folders_of_killed_processes(tmp_path, monkeypatch):
    """The next command removes the folder of a killed process, and no folder that is in use."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

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
