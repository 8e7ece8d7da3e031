"""Disk and process failures during a save: an intact state remains, and the message names it."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import random
import re
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from crepe_dist.data.arrays import write_array
from crepe_dist.errors import UserError
from crepe_dist.files import write_json, write_text
from crepe_dist.model import parameters
from crepe_dist.records import write_sealed
from crepe_dist.runs import checkpoint, state
from crepe_dist.runs.metrics import SCALARS, Metrics
from crepe_dist.runs.run_folder import RunFolder, read_result
from crepe_dist.runs.state import Progress, Snapshot
from crepe_dist.settings.options import CheckpointOptions
from crepe_dist.training.saving import StateSaver
from tests.chaos import harness
from tests.conftest import DEAD
from tests.helpers.needs import needs

CALLS = "write,pwrite64,writev,fsync,fdatasync,rename,renameat,renameat2,mkdir,openat,unlink,unlinkat,rmdir"
FILES = (*state.FILES, state.MANIFEST)


def snapshot(step: int, rows: int = 50) -> Snapshot:
    values = np.full((rows, 40), step, np.float32)
    return Snapshot(Progress(step=step), {"a": values, "b": values[0]}, {"updates": np.array([step])})


def whole_step(folder: Path) -> int:
    """Return the step of the newest intact state, after comparing its values."""
    found = state.load_newest(folder)
    assert found is not None
    step = found.snapshot.progress.step
    assert all((array == step).all() for array in found.snapshot.parameters.values())
    assert found.snapshot.optimizer["updates"][0] == step
    return step


def finished_run(path: Path) -> RunFolder:
    """A finished run of four epochs, the second of which it reports, with two states and the leftovers of a kill."""
    run = RunFolder(path)
    (path / "checkpoints").mkdir(parents=True)
    for epoch in range(4):
        for suffix in ("params", "json", "scores.json"):
            write_text(path / "checkpoints" / f"crepe_epoch_{epoch}_test_acc_9{epoch}.5.{suffix}", suffix)
    write_json(path / "run.json", {"model": {}, "optimizer": {}, "training": {}, "data": "0"})
    state.save(run.state, snapshot(2), state.save(run.state, snapshot(1)))
    (run.state / ".partial-1").mkdir()
    write_text(run.state / ".partial-1" / "parameters.safetensors", "half")
    write_text(path / f".config.yaml.{DEAD}", "half")
    scores = {"chosen_by": "validation split", "test_accuracy": 0.9, "test_loss": 0.1}
    reported = "checkpoints/crepe_epoch_1_test_acc_91.5.params"
    result = {"checkpoint": reported, "epoch": 1, **scores, "provenance": {}}
    write_sealed(path / "result.json", checkpoint.RESULT_FORMAT, result)
    return run


@needs("strace")
class TestKilledInASave:
    """strace sends SIGKILL at each system call that changes the disk, one after the other."""

    def under_strace(self, work: Callable[[], object], log: Path, inject: str = "") -> int:
        """Works in a child that was forked from here, so that nothing is imported; returns its wait status."""
        ready, go = os.pipe()
        child = os.fork()
        if child == 0:
            os.read(ready, 1)
            try:
                work()
            finally:
                os._exit(0)
        strace = subprocess.Popen(
            ["strace", "-f", "-p", str(child), "-e", f"trace={CALLS}", *(["-e", inject] if inject else [])],
            stderr=log.open("w"),
        )
        harness.wait_for(lambda: "attached" in log.read_text() or strace.poll() is not None, 20)
        assert strace.poll() is None, log.read_text()
        os.write(go, b"x")
        _, status = os.waitpid(child, 0)
        strace.wait(20)
        os.close(ready)
        os.close(go)
        return status

    def killed_at_every_call(
        self, tmp_path: Path, fresh: Callable[[Path], Callable[[], object]], needed: set[str]
    ) -> Iterator[Path]:
        """Yields the folder of each try, in which the work was killed.

        Args:
            fresh: fills a folder; returns the work to be done in it.
            needed: system calls that the work needs.
        """
        log = tmp_path / "log"
        assert self.under_strace(fresh(tmp_path / "whole"), log) == 0
        calls = re.findall(rf"^(?:\[pid +\d+\] )?({CALLS.replace(',', '|')})\(", log.read_text(), re.M)
        assert needed <= set(calls)
        for call in sorted(set(calls)):
            for number in range(1, calls.count(call) + 1):
                folder = tmp_path / f"{call}-{number}"
                status = self.under_strace(fresh(folder), log, f"inject={call}:signal=SIGKILL:when={number}")
                assert os.WIFSIGNALED(status), (call, number)
                yield folder

    def test_at_every_call(self, tmp_path):
        def fresh(folder: Path) -> Callable[[], object]:
            good = state.save(folder, snapshot(1))
            return lambda: state.save(folder, snapshot(2), good)

        survived = set()
        for folder in self.killed_at_every_call(tmp_path, fresh, {"write", "fsync", "rename"}):
            found = state.load_newest(folder)
            assert found is not None
            assert found.damaged == []
            survived.add(whole_step(folder))
            state.save(folder, snapshot(3), found.path)  # whatever is lying about
            assert whole_step(folder) == 3
            assert len(list(folder.iterdir())) == 2
        assert survived == {1, 2}

    def test_when_a_finished_run_is_tidied(self, tmp_path):
        """Result and reported checkpoint stay, no half of a state is found, and the next try removes the rest."""
        needed = {"rename", "unlink", "rmdir"}
        for path in self.killed_at_every_call(tmp_path, lambda path: finished_run(path).tidy, needed):
            run = RunFolder(path)
            result = read_result(run)
            assert result is not None
            assert result.checkpoint.with_suffix(".json").is_file()
            assert all((each / state.MANIFEST).is_file() for each in run.state.glob("step_*"))
            run.tidy()
            assert {each.name for each in path.iterdir()} == {"run.json", "result.json", "checkpoints"}
            assert {each.name.split("_")[2] for each in (path / "checkpoints").iterdir()} == {"1", "3"}


class TestDamaged:
    @pytest.fixture
    def folder(self, tmp_path):
        state.save(tmp_path, snapshot(2), state.save(tmp_path, snapshot(1)))
        assert whole_step(tmp_path) == 2
        return tmp_path

    @pytest.mark.parametrize("name", FILES)
    def test_any_byte_flipped_or_cut_or_another_kind_of_file(self, folder, name):
        path = folder / snapshot(2).name / name
        whole = path.read_bytes()
        generator = random.Random(name)
        for place in generator.sample(range(len(whole)), min(100, len(whole))):
            flipped = bytes([whole[place] ^ 1 << generator.randrange(8)])
            for damaged in (whole[:place], whole[:place] + flipped + whole[place + 1 :]):
                path.write_bytes(damaged)
                # A bit of the manifest may change nothing: a space, the case of a digit.
                assert whole_step(folder) == 1 or name == state.MANIFEST
        path.unlink()
        assert whole_step(folder) == 1
        for make in (os.mkfifo, lambda path: path.symlink_to("/dev/zero")):
            make(path)
            assert whole_step(folder) == 1
            path.unlink()

    def test_all_of_them(self, folder):
        for path in folder.glob("*/manifest.json"):
            path.write_text("{}")
        with pytest.raises(UserError, match="no saved state in"):
            state.load_newest(folder)

    def test_training_goes_on_from_the_one_before_and_says_so(self, trial):
        trial.kill(30)
        before, newest = sorted((trial.run_dir / "state").glob("step_*"))
        os.truncate(newest / "optimizer.safetensors", 100)
        printed = trial.resume()
        assert f"skipped a damaged state: {newest}" in printed
        assert f"saved in {before}" in printed


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own of a few states and checkpoints."""
    place = tmp_path / "small"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2500k", "none", str(place)], check=True)
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def fill(place: Path) -> Path:
    filling = place / "filling"
    with filling.open("ab", buffering=0) as stream, contextlib.suppress(OSError):
        while stream.write(b"x" * 4096):
            pass
    return filling


@needs("mount", root=True)
class TestFullDisk:
    def test_a_save_that_has_no_room(self, small_disk):
        folder = small_disk / "state"
        said: list[str] = []
        saver = StateSaver(folder, CheckpointOptions(every=1), said.append)
        saver.save(snapshot(1))
        saver.wait()
        filling = fill(small_disk)
        saver.save(snapshot(2, rows=2000))
        saver.wait()
        assert saver.durable_step == whole_step(folder) == 1
        (message,) = said
        assert "step 2 could not be saved" in message
        assert f"the newest state is {folder / snapshot(1).name}" in message
        assert [path.name for path in folder.iterdir()] == [snapshot(1).name]
        filling.unlink()
        saver.save(snapshot(3))
        saver.wait()
        assert saver.durable_step == whole_step(folder) == 3

    def test_what_cannot_be_written_is_named(self, small_disk):
        fill(small_disk)
        values = {"a": np.zeros((200, 100), np.float32)}
        for name, write in (
            ("scores.json", lambda path: write_json(path, list(range(10_000)))),
            ("a.params", lambda path: parameters.save(values, path)),
            ("a.safetensors", lambda path: parameters.write_safetensors(values, path)),
            ("labels.npy", lambda path: write_array(path.parent, path.name, values["a"])),
        ):
            with pytest.raises(OSError, match="No space left on device") as caught:
                write(small_disk / name)
            assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(small_disk / name))

    def test_metrics_wait_for_room_and_tensorboard_is_given_up(self, small_disk):
        said: list[str] = []
        metrics = Metrics(small_disk, said.append, tensorboard=True)
        record = {"step": 1, **dict.fromkeys(SCALARS, 1.0)}
        metrics.steps([record])
        metrics.sync()
        filling = fill(small_disk)
        for step in range(2, 3000):
            metrics.steps([{**record, "step": step}])
        with pytest.raises(OSError, match="No space left"):
            metrics.sync()
        filling.unlink()
        metrics.sync()
        lines = (small_disk / "metrics.jsonl").read_text().splitlines()
        assert [json.loads(line)["step"] for line in lines] == list(range(1, 3000))
        assert len(said) == 1
        assert said[0].startswith("TensorBoard gets no more metrics")

    def test_no_room_for_a_checkpoint_is_an_error_with_a_remedy(self, data, small_disk, unbroken):
        trial = harness.Trial(data, small_disk, unbroken)
        process = harness.start(harness.command(trial.run_dir, data), small_disk)
        harness.wait_for(lambda: harness.has_saved(trial.run_dir) or process.poll() is not None)
        while process.poll() is None:  # again and again: a state that is removed leaves room for a checkpoint
            filling = fill(small_disk)
            time.sleep(0.01)
        code, printed = harness.finish(process)
        assert code == 1, printed
        assert "No space left on device" in printed
        assert "the same command resumes from" in printed
        assert "Traceback" not in printed
        filling.unlink()
        trial.resume()


class TestSaver:
    """Schedule of state saves, by steps and by seconds."""

    @pytest.mark.parametrize("every", [1, 5])
    def test_no_more_than_so_many_steps_are_ever_unsaved(self, tmp_path, monkeypatch, every):
        taken: list[int] = []
        save = state.save

        def slow(folder: Path, snapshot: Snapshot, good: Path | None) -> Path:
            time.sleep(0.05)
            done = save(folder, snapshot, good)
            taken.append(snapshot.progress.step)
            return done

        monkeypatch.setattr(state, "save", slow)
        saver = StateSaver(tmp_path, CheckpointOptions(every=every), print)
        for step in range(1, 30):
            due = saver.due(step)
            assert step - 1 - (taken[-1] if taken else 0) <= every
            time.sleep(0.01)
            if due:
                saver.save(snapshot(step))
        saver.close()
        assert len(taken) >= 28 // every

    def test_training_does_not_wait_for_a_slow_disk_if_seconds_decide(self, tmp_path, monkeypatch):
        now = [100.0]
        monkeypatch.setattr(time, "monotonic", lambda: now[0])
        done = threading.Event()
        save = state.save

        def slow(*values: Any) -> Path:
            assert done.wait(60)
            return save(*values)

        monkeypatch.setattr(state, "save", slow)
        said: list[str] = []
        saver = StateSaver(tmp_path, CheckpointOptions(every_s=60), said.append, patience=0)
        saver.save(snapshot(1))
        now[0] += 59
        assert not saver.due(2)
        assert not said
        now[0] += 100
        assert not saver.due(3)
        assert not saver.due(4)
        assert said == ["writing a state takes over 60 s: a kill may lose more work than it should"]
        done.set()
        saver.wait(5)
        assert saver.durable_step == 1
        assert saver.epochs == {0}
        assert saver.due(5)
        saver.close()
