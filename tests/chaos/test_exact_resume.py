"""Exact resume: a run killed at any step and resumed is bit-identical to an unbroken one."""

from __future__ import annotations

import random
import shutil

import pytest

from tests.chaos import harness
from tests.chaos.harness import slow
from tests.conftest import DEAD, NGRAMS, PAPER, needs_kernels

EVERY = 4  # checkpoint.every of the runs here
TYPOS = ("--typos=0.1",)


def kill(run_dir, data, cwd, *more, processes=1, rank=0, step, phase="train", number=0):
    """Runs until the kill; returns the step that the newest state is of."""
    fault = {"kind": "SIGKILL", "rank": rank, "phase": phase, "step": step, "once": str(cwd / f"killed-{number}")}
    code, printed = harness.run(harness.command(run_dir, data, processes, *more), cwd, fault)
    assert code != 0, printed
    assert (cwd / f"killed-{number}").exists(), printed
    assert processes == 1 or "run the same command again to resume" in printed, printed
    return harness.saved_step(run_dir)


def steps_to_kill_at(count):
    """The first and last step, both sides of an epoch's end, and some at random."""
    generator = random.Random(5)
    return sorted({0, 12, 13, 38, *generator.sample(range(harness.STEPS), count)})


def go_through(data, tmp_path, unbroken, kills, processes, *more):
    run_dir = tmp_path / "run"
    for number, step in enumerate(kills):
        where = {"rank": step % processes, "step": step, "number": number}
        saved = kill(run_dir, data, tmp_path, *more, processes=processes, **where)
        assert step - EVERY <= saved <= step, "more was lost than checkpoint.every"
    code, printed = harness.run(harness.command(run_dir, data, processes, *more), tmp_path)
    assert code == 0, printed
    harness.assert_same(run_dir, unbroken(processes, *more))


@pytest.mark.parametrize("processes", [1, 2])
def test_killed_at_a_few_steps(data, tmp_path, unbroken, processes):
    """Before the first step, in an epoch and after it."""
    go_through(data, tmp_path, unbroken, [0, 30] if processes == 1 else [17], processes)
    assert harness.result(tmp_path / "run")["ngrams.significant"].any()


@pytest.mark.parametrize(
    ("network", "processes"),
    [(PAPER, 1), slow(PAPER, 2), (NGRAMS, 1), slow(NGRAMS, 2)],
    ids=["paper-1", "paper-2", "ngrams-1", "ngrams-2"],
)
def test_killed_with_another_network(data, tmp_path, unbroken, network, processes):
    go_through(data, tmp_path, unbroken, [17], processes, *network, *TYPOS)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("processes", [1, 2, 3])
def test_killed_at_many_steps(data, tmp_path, unbroken, processes):
    kills = range(harness.STEPS) if processes == 1 else steps_to_kill_at(6)
    go_through(data, tmp_path, unbroken, kills, processes)


@pytest.mark.parametrize(("phase", "step"), [("evaluate", 13), slow("save", 13), ("save", 20), slow("save", 39)])
def test_killed_while_it_scores_or_saves(data, tmp_path, unbroken, phase, step):
    saved = kill(tmp_path / "run", data, tmp_path, phase=phase, step=step)
    # Of the state in the making nothing is left; before it, at most `every` steps were unsaved, and as many done since.
    assert saved >= step - 2 * EVERY if phase == "save" else saved >= step - EVERY
    code, printed = harness.run(harness.command(tmp_path / "run", data), tmp_path)
    assert code == 0, printed
    harness.assert_same(tmp_path / "run", unbroken(1))


def test_the_clock_of_rank_0_decides_for_all_ranks(data, tmp_path, unbroken):
    arguments = harness.command(tmp_path / "run", data, 2, "--checkpoint.every=null", "--checkpoint.every-s=0.05")
    fault = {"kind": "SIGKILL", "rank": 0, "phase": "save", "step": 1, "pace": 0.1, "once": str(tmp_path / "killed")}
    code, printed = harness.run(arguments, tmp_path, fault)
    assert code != 0, printed
    assert (tmp_path / "run" / "metrics.jsonl").read_text().count('"step"') < 13, "no save within the epoch"
    code, printed = harness.run(arguments, tmp_path)
    assert code == 0, printed
    harness.assert_same(tmp_path / "run", unbroken(2))


def test_killed_before_anything_was_saved(data, tmp_path, unbroken):
    """Steps were recorded, but there is no state: it begins again, and each step stands once."""
    kill(tmp_path / "run", data, tmp_path, step=11)
    shutil.rmtree(tmp_path / "run" / "state")
    code, printed = harness.run(harness.command(tmp_path / "run", data, 1, "--logging.tensorboard=true"), tmp_path)
    assert code == 0, printed
    harness.assert_same(tmp_path / "run", unbroken(1))


@needs_kernels
@pytest.mark.parametrize("network", [(), slow(PAPER)], ids=["crepe", "paper"])
def test_other_numbers_of_processes_are_the_same_run(data, tmp_path, unbroken, network, monkeypatch):
    """Four processes are killed, one continues and is killed, and three end it; each has threads of another number."""
    run_dir = tmp_path / "run"
    for number, (processes, step) in enumerate(((4, 9), (1, 28))):
        monkeypatch.setenv("OMP_NUM_THREADS", str(number + 1))
        kill(run_dir, data, tmp_path, *network, *TYPOS, processes=processes, step=step, number=number)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    code, printed = harness.run(harness.command(run_dir, data, 3, *network, *TYPOS), tmp_path)
    assert code == 0, printed
    assert [step for step, _ in harness.steps(run_dir)] == list(range(1, harness.STEPS + 1))
    harness.assert_same(run_dir, unbroken(1, *network, *TYPOS))


def test_killed_before_the_report_was_written(data, tmp_path):
    run_dir, reported = tmp_path / "run", ("--logging.report=true", "--epochs=1")
    kill(run_dir, data, tmp_path, *reported, step=13, phase="report")
    assert (run_dir / "result.json").is_file()
    (run_dir / f".report.html.{DEAD}").touch()  # as if it had been killed while it wrote the report
    code, printed = harness.run(harness.command(run_dir, data, 1, *reported), tmp_path)
    assert code == 0, printed
    assert "is finished" in printed
    assert all((run_dir / name).stat().st_size > 100 for name in ("report.html", "model_card.md"))
    assert not (run_dir / f".report.html.{DEAD}").exists()
    code, printed = harness.run(harness.command(run_dir, data, 1, *reported), tmp_path)
    assert "report.html" not in printed  # it is there now
