"""Disk and process failures during a save: an intact state remains, and the message names it."""

import contextlib
import json
import os
import random
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from crepe_dist.errors import UserError
from crepe_dist.runs import resume_state
from crepe_dist.runs.metrics import MetricsLogger
from crepe_dist.runs.resume_state import ResumeState, TrainerState
from crepe_dist.settings.options import StateOptions
from crepe_dist.training.state_saver import BackgroundStateSaver
from tests.chaos import harness
from tests.conftest import needs_kernels
from tests.helpers.needs import needs

FILES = (*resume_state.FILES, resume_state.MANIFEST)


def snapshot(step: int, rows: int = 50) -> ResumeState:
    values = np.full((rows, 40), step, np.float32)
    return ResumeState(TrainerState(step=step), {"a": values, "b": values[0]}, {"updates": np.array([step])})


def whole_step(folder: Path) -> int:
    """Return the step of the newest intact state, after comparing its values."""
    found = resume_state.load_newest(folder)
    assert found is not None
    step = found.state.progress.step
    assert all((array == step).all() for array in found.state.parameters.values())
    assert found.state.optimizer["updates"][0] == step
    return step


class TestDamaged:
    @pytest.fixture
    def folder(self, tmp_path):
        resume_state.save(tmp_path, snapshot(2), resume_state.save(tmp_path, snapshot(1)))
        assert whole_step(tmp_path) == 2
        return tmp_path

    @pytest.mark.parametrize("name", FILES)
    def test_any_byte_flipped_or_cut_or_another_kind_of_file(self, folder, name):
        path = folder / snapshot(2).name / name
        whole = path.read_bytes()
        generator = random.Random(name)
        for place in generator.sample(range(len(whole)), min(25, len(whole))):
            flipped = bytes([whole[place] ^ 1 << generator.randrange(8)])
            for damaged in (whole[:place], whole[:place] + flipped + whole[place + 1 :]):
                path.write_bytes(damaged)
                # Some bits of the manifest have no effect, such as the case of a hexadecimal digit.
                assert whole_step(folder) == 1 or name == resume_state.MANIFEST
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
            resume_state.load_newest(folder)

    @needs_kernels
    def test_training_goes_on_from_the_one_before_and_says_so(self, trial):
        trial.kill(30)
        before, newest = sorted((trial.run_dir / "state").glob("step_*"))
        os.truncate(newest / "optimizer.safetensors", 100)
        printed = trial.resume()
        assert f"skipped a damaged state: {newest}" in printed
        assert f"saved in {before}" in printed


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Mount a file system that has space for only a few states and checkpoints."""
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
        saver = BackgroundStateSaver(folder, StateOptions(save_steps=1), said.append)
        saver.save(snapshot(1))
        saver.wait()
        filling = fill(small_disk)
        saver.save(snapshot(2, rows=2000))
        saver.wait()
        assert saver.last_saved_step == whole_step(folder) == 1
        (message,) = said
        assert "step 2 could not be saved" in message
        assert f"the newest state is {folder / snapshot(1).name}" in message
        assert [path.name for path in folder.iterdir()] == [snapshot(1).name]
        filling.unlink()
        saver.save(snapshot(3))
        saver.wait()
        assert saver.last_saved_step == whole_step(folder) == 3

    def test_metrics_wait_for_room(self, small_disk):
        metrics = MetricsLogger(small_disk)
        record = {"step": 1, "loss": 1.0, "learning_rate": 1.0, "milliseconds": 1.0}
        metrics.log("step", [record])
        metrics.sync()
        filling = fill(small_disk)
        for step in range(2, 3000):
            metrics.log("step", [{**record, "step": step}])
        with pytest.raises(OSError, match="No space left"):
            metrics.sync()
        filling.unlink()
        metrics.sync()
        lines = (small_disk / "metrics.jsonl").read_text().splitlines()
        assert [json.loads(line)["step"] for line in lines] == list(range(1, 3000))

    @needs_kernels
    def test_no_room_for_a_checkpoint_is_an_error_with_a_remedy(self, data, small_disk, unbroken):
        trial = harness.Trial(data, small_disk, unbroken)
        process = harness.start(harness.command(trial.run_dir, data), small_disk)
        harness.wait_for(lambda: harness.has_saved(trial.run_dir) or process.poll() is not None)
        while process.poll() is None:  # Repeatedly, because a removed state frees space.
            filling = fill(small_disk)
            time.sleep(0.01)
        code, printed = harness.finish(process)
        assert code == 1, printed
        assert "No space left on device" in printed
        assert "the same command resumes from" in printed
        assert "Traceback" not in printed
        filling.unlink()
        trial.resume()


def test_no_more_than_so_many_steps_are_ever_unsaved(tmp_path, monkeypatch):
    taken: list[int] = []
    save = resume_state.save

    def slow(folder: Path, snapshot: ResumeState, good: Path | None) -> Path:
        time.sleep(0.05)
        done = save(folder, snapshot, good)
        taken.append(snapshot.progress.step)
        return done

    monkeypatch.setattr(resume_state, "save", slow)
    saver = BackgroundStateSaver(tmp_path, StateOptions(save_steps=5), print)
    for step in range(1, 30):
        due = saver.should_save(step)
        assert step - 1 - (taken[-1] if taken else 0) <= 5
        time.sleep(0.01)
        if due:
            saver.save(snapshot(step))
    saver.close()
    assert len(taken) >= 28 // 5


def test_training_does_not_wait_for_a_slow_disk_if_seconds_decide(tmp_path, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    done = threading.Event()
    save = resume_state.save

    def slow(*values: Any) -> Path:
        assert done.wait(60)
        return save(*values)

    monkeypatch.setattr(resume_state, "save", slow)
    said: list[str] = []
    saver = BackgroundStateSaver(tmp_path, StateOptions(save_seconds=60), said.append, timeout=0)
    saver.save(snapshot(1))
    now[0] += 59
    assert not saver.should_save(2)
    now[0] += 100
    assert not saver.should_save(3)
    assert said == ["writing a state takes over 60 s: a kill may lose more work than it should"]
    done.set()
    saver.wait(5)
    assert saver.last_saved_step == 1
    assert saver.should_save(5)
    saver.close()
