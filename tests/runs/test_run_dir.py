"""Directory of a run: the same command continues, whatever files a killed process has left."""

import json
import os
import pathlib
from functools import partial

import pytest

from crepe_dist.distributed.signals import SUPERVISION_ID_ENV
from crepe_dist.errors import ExitCode, UserError
from crepe_dist.files.atomic_write import atomic_text
from crepe_dist.runs.run_dir_selection import select_run_dir_on_rank0
from crepe_dist.settings.config import Config, parse
from tests.conftest import DEAD

CALLS = ("mkdir", "open", "fsync", "replace", "rename")


def killed_at(number, work):
    """Do the work in a process that ends at a certain file system call. Return false if the work made fewer calls."""
    child = os.fork()
    if child == 0:
        left = [number]

        def deadly(call):
            def called(*arguments, **named):
                left[0] -= 1
                if left[0] < 0:
                    os._exit(9)
                return call(*arguments, **named)

            return called

        for owner, names in ((os, CALLS), (pathlib.Path, ("mkdir", "open", "replace"))):
            for name in names:
                setattr(owner, name, deadly(getattr(owner, name)))
        try:
            work()
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9


@pytest.mark.parametrize("supervisor", ["", "5e1f"])
@pytest.mark.parametrize("fresh", [False, True])
def test_killed_at_every_call_of_the_first_second(tmp_path, monkeypatch, supervisor, fresh):
    monkeypatch.setenv(SUPERVISION_ID_ENV, supervisor)

    def choose(name, fresh=False):
        return select_run_dir_on_rank0(Config(run_dir=str(tmp_path / name), fresh=fresh), "data", "fingerprint")

    number = 0
    while True:
        name = f"run{number}-{fresh}"
        if fresh:
            with monkeypatch.context() as another:
                another.setenv(SUPERVISION_ID_ENV, "before")
                choose(name)
        if not killed_at(number, partial(choose, name, fresh)):
            break
        folder = choose(name, fresh)
        with next(folder.lock_in_steps(0, print)):
            names = {path.name for path in folder.path.iterdir()}
            assert names - {"supervision"} == {"run.json", "config.yaml", ".lock"}
        # Without a supervisor, --fresh starts another run if the killed process has already created one.
        expected = f"{name}-2" if fresh else name
        assert folder.path.name in ((expected, f"{name}-3") if fresh and not supervisor else (expected,))
        number += 1
    assert number > 5


@pytest.mark.parametrize("model", ["{}", "{network: ngrams}"])
def test_the_saved_configuration_selects_its_run(tmp_path, monkeypatch, model):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "given.yaml").write_text(f"model: {model}")
    made = select_run_dir_on_rank0(parse(["--config", "given.yaml"]), "data", "fingerprint")
    saved = ["--config", str(made.path / "config.yaml")]
    assert select_run_dir_on_rank0(parse(saved), "data", "fingerprint") == made
    assert select_run_dir_on_rank0(parse([*saved, "--fresh"]), "data", "fingerprint").path.name == f"{made.path.name}-2"
    assert (
        select_run_dir_on_rank0(parse([*saved, "--epochs=9"]), "data", "fingerprint").path.name[:15] != made.path.name
    )


def test_a_file_of_somebody_else_is_no_leftover(tmp_path):
    for name in (".bashrc", "notes.1", ".x.123.txt"):
        place = tmp_path / name
        place.mkdir()
        (place / name).touch()
        with pytest.raises(UserError, match="is neither empty nor a run's folder"):
            select_run_dir_on_rank0(Config(run_dir=str(place)), "data", "fingerprint")
        assert (place / name).exists()


def test_the_lock_removes_what_killed_processes_left(tmp_path):
    folder = select_run_dir_on_rank0(Config(run_dir=str(tmp_path / "run")), "data", "fingerprint")
    (folder.path / "checkpoints").mkdir()
    checkpoints = folder.path / "checkpoints"
    left = [folder.path / f".result.json.{DEAD}", checkpoints / f".crepe_epoch_0_test_acc_5.0.json.{DEAD}"]
    kept = checkpoints / "crepe_epoch_0_test_acc_5.0.json"
    written = folder.path / ".config.yaml.1"  # Written by a process that is about to take the lock.
    for path in (*left, kept, written):
        path.touch()
    lock = next(folder.lock_in_steps(0, print))
    assert lock is not None
    with lock, atomic_text(folder.path / "later") as stream:
        stream.write(json.dumps(1))
    assert kept.exists()
    assert written.exists()
    assert not any(path.exists() for path in left)
    assert (folder.path / "later").read_text() == "1"


@pytest.mark.parametrize(("timeout", "code"), [(0, ExitCode.ERROR), (0.3, ExitCode.FAILURE)])
def test_a_locked_directory_is_an_error_that_may_pass_only_after_a_wait(tmp_path, timeout, code):
    folder = select_run_dir_on_rank0(Config(run_dir=str(tmp_path / "run")), "data", "fingerprint")
    with folder.lock(), pytest.raises(UserError, match="another process is training") as error:
        list(folder.lock_in_steps(timeout, print))
    assert error.value.code == code


class TestWhichFolder:
    def chosen(self, base, *flags):
        return select_run_dir_on_rank0(parse([f"--run-dir={base}", *flags]), "data", "fingerprint").path.name

    def test_a_supervisor_s_processes_come_back_to_the_run_that_its_first_ones_began(self, tmp_path, monkeypatch):
        base = tmp_path / "run"
        assert [self.chosen(base), self.chosen(base, "--fresh")] == ["run", "run-2"]
        monkeypatch.setenv(SUPERVISION_ID_ENV, "one")
        assert [self.chosen(base, "--fresh") for _ in range(2)] == ["run-3", "run-3"]
        monkeypatch.setenv(SUPERVISION_ID_ENV, "two")
        assert self.chosen(base, "--fresh") == "run-4"
        monkeypatch.delenv(SUPERVISION_ID_ENV)
        assert self.chosen(base) == "run-4"

    def test_runs_are_named_by_data_and_settings(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        given: tuple[list[str], ...] = ([], ["--logging.report=false"], ["--seed=1"])
        names = {select_run_dir_on_rank0(parse(more), "data", "f").path.name for more in given}
        assert len(names) == 2  # what it logs decides nothing
        assert all(name.startswith("data-") for name in names)

    def test_neighbours_of_other_settings_are_passed_over(self, tmp_path):
        base = tmp_path / "run"
        assert [self.chosen(base), self.chosen(tmp_path / "run-2", "--epochs=9")] == ["run", "run-2"]
        assert self.chosen(base) == "run"
        assert self.chosen(base, "--epochs=9") == "run-2"
        with pytest.raises(UserError, match=r"run was started with other settings"):
            self.chosen(base, "--epochs=3")
