"""Exact resume: a run killed at any step and resumed is bit-identical to an unbroken one."""

import random

import pytest

from tests.chaos import harness
from tests.conftest import DEAD, PAPER, needs_kernels

EVERY = 4  # Value of state.save_steps in these runs.
TYPOS = ("--typos=0.1",)


def go_through(trial, kills, processes, *more):
    for step in kills:
        saved = trial.kill(step, processes, *more, rank=step % processes)
        assert step - EVERY <= saved <= step, "more was lost than state.save_steps"
    trial.resume(processes, *more)


@needs_kernels
def test_killed_at_a_few_steps(trial):
    """The run is killed before the first step, and within an epoch."""
    go_through(trial, [0, 30], 1)
    assert harness.result(trial.run_dir)["ngrams.significant"].any()


@pytest.mark.slow
def test_killed_with_another_network(trial):
    go_through(trial, [17], 2, *PAPER, *TYPOS)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2, 3])
def test_killed_at_many_steps(trial, processes):
    """One process is killed at every step, several at the first, the last and random steps, and at an epoch's end."""
    some = {0, 12, 13, 38, *random.Random(5).sample(range(harness.STEPS), 6)}
    go_through(trial, range(harness.STEPS) if processes == 1 else sorted(some), processes)


@needs_kernels
@pytest.mark.parametrize(("phase", "step"), [("evaluate", 13), ("save", 20)])
def test_killed_while_it_scores_or_saves(trial, phase, step):
    # The incomplete state is lost. At most EVERY steps were unsaved before it, and as many have been done since.
    assert trial.kill(step, phase=phase) >= step - EVERY * (2 if phase == "save" else 1)
    trial.resume()


@needs_kernels
def test_other_numbers_of_processes_are_the_same_run(trial, monkeypatch):
    """A run of three processes is killed. One process with another number of threads completes it."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    trial.kill(17, 3, *TYPOS, rank=1, supervised=True)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    trial.resume(1, *TYPOS)


@needs_kernels
def test_killed_before_the_report_was_written(trial):
    run_dir, reported = trial.run_dir, ("--logging.report=true", "--epochs=1")
    trial.kill(13, 1, *reported, phase="report")
    assert (run_dir / "result.json").is_file()
    (run_dir / f".report.html.{DEAD}").touch()  # As if the run had been killed while it wrote the report.
    code, printed = trial.run(1, *reported)
    assert code == 0, printed
    assert "is finished" in printed
    assert all((run_dir / name).stat().st_size > 100 for name in ("report.html", "model_card.md"))
    assert not (run_dir / f".report.html.{DEAD}").exists()


@needs_kernels
def test_a_crash_of_one_rank_of_two_is_explained(trial):
    code, printed = trial.run(2, fault=trial.fault("raise", 15, rank=1))
    assert code == 1, printed  # The exit code of horovodrun.
    assert printed.count("unexpected failure: RuntimeError: a mistake nobody foresaw") == 1, printed
    assert "faulty" in printed  # A function in the traceback.
