"""Non-finite numbers and replica divergence are found before the update and before a save."""

from __future__ import annotations

import pytest

from crepe_dist.data.dataset import open_dataset
from crepe_dist.data.loader import share, training_order
from crepe_dist.errors import ExitCode
from crepe_dist.native import library
from crepe_dist.runs.state import Progress
from tests.chaos import harness
from tests.chaos.harness import slow
from tests.conftest import PAPER, records


def plan(tmp_path, kind, rank, step=17):
    return {"kind": kind, "rank": rank, "phase": "train", "step": step, "once": str(tmp_path / "once")}


@pytest.mark.parametrize(("kind", "processes", "rank"), [slow("nan", 1, 0), ("inf", 2, 1), slow("nan", 3, 2)])
def test_all_ranks_stop_before_the_update(data, tmp_path, unbroken, kind, processes, rank):
    run_dir = tmp_path / "run"
    code, printed = harness.run(harness.command(run_dir, data, processes), tmp_path, plan(tmp_path, kind, rank))
    assert code == ExitCode.ERROR, printed
    # Steps count from 1: after 17 it is the 18th, the fifth of the second epoch, of 25 documents each.
    group_size = 4 if library.find()[0] else 1
    first, end = share(100, 125, rank, processes, group_size)
    order = training_order(open_dataset(data).splits["train"], 0, 1, 25)
    rows = ", ".join(map(str, order[first:end].tolist()))
    assert (
        printed.count(f"non-finite loss or gradient at step 18 on rank {rank} (rows {rows} of the train split)") == 1
    ), printed
    assert "<stderr>:Traceback" not in printed
    assert harness.saved_step(run_dir) >= 13
    code, printed = harness.run(harness.command(run_dir, data, processes), tmp_path)
    assert code == 0, printed
    harness.assert_same(run_dir, unbroken(processes))


@pytest.mark.parametrize("processes", [slow(1), 2])
def test_a_step_can_be_left_out(data, tmp_path, unbroken, processes):
    run_dir = tmp_path / "run"
    arguments = harness.command(run_dir, data, processes, "--safety.nonfinite=skip")
    code, printed = harness.run(arguments, tmp_path, plan(tmp_path, "nan", processes - 1))
    assert code == 0, printed
    assert printed.count("step 18 is skipped") == 1
    assert [(each["step"], each["ranks"]) for each in records(run_dir, "skipped")] == [(18, [processes - 1])]
    mine, theirs = dict(harness.steps(run_dir)), dict(harness.steps(unbroken(processes)))
    assert 18 not in mine
    assert all(mine[step] == theirs[step] for step in range(1, 18))
    assert mine[19] != theirs[19]  # the update of step 18 is missing
    assert len(mine) == harness.STEPS - 1


@pytest.mark.parametrize(("processes", "rank"), [(1, 0), (2, 1)])
def test_divergence_in_the_last_step_before_scoring_writes_nothing(data, tmp_path, unbroken, processes, rank):
    run_dir = tmp_path / "run"
    fault = plan(tmp_path, "diverged", rank, step=13)  # the last of the epoch
    rarely = "--checkpoint.every=100"  # a save of the step itself would find what was spoilt
    code, printed = harness.run(harness.command(run_dir, data, processes, rarely), tmp_path, fault)
    assert code == ExitCode.ERROR, printed
    assert printed.count("error: training diverged") == 1, printed
    assert "Warning" not in printed
    assert not records(run_dir, "epoch")
    assert not list(run_dir.glob("checkpoints/*"))
    assert not (run_dir / "result.json").exists()
    code, printed = harness.run(harness.command(run_dir, data, processes), tmp_path)
    assert code == 0, printed
    harness.assert_same(run_dir, unbroken(processes))


@pytest.mark.parametrize(("processes", "odd"), [(2, "1"), slow(3, "0")])
def test_a_replica_that_differs_is_named(data, tmp_path, processes, odd):
    run_dir = tmp_path / "run"
    arguments = harness.command(run_dir, data, processes, "--checkpoint.every=100")
    code, printed = harness.run(arguments, tmp_path, plan(tmp_path, "diverge", int(odd)))
    assert code == ExitCode.ERROR, printed
    assert printed.count(f"the parameters of rank {odd} differ from those of the other ranks") == 1
    assert harness.saved_step(run_dir) <= 17, "what differs must not be saved"


@pytest.mark.slow
def test_what_differs_is_not_saved(data, tmp_path):
    """Without regular comparisons, the save makes one."""
    run_dir = tmp_path / "run"
    arguments = harness.command(run_dir, data, 2)
    code, printed = harness.run(arguments, tmp_path, plan(tmp_path, "diverge", 0))
    assert code == ExitCode.ERROR, printed
    assert harness.saved_step(run_dir) <= 17


EXCHANGE = ("--model=ngrams", "--buckets=16777216", "--optimizer=adam")  # takes 0.8 GB


@pytest.mark.parametrize(
    ("more", "batch_size", "megabytes"), [((*PAPER, "--filters=512"), 16384, 1500), (EXCHANGE, 512, 700)]
)
def test_out_of_memory_names_the_batch(data, tmp_path, more, batch_size, megabytes):
    """A limit on the process's memory stands for a device that is too small."""
    limited = (
        "import resource, sys; from tests.chaos import worker; from crepe_dist import command; "
        "import crepe_dist.training.recipe; "
        "used = int(open('/proc/self/statm').read().split()[0]) * 4096; "
        f"resource.setrlimit(resource.RLIMIT_AS, (used + ({megabytes} << 20), resource.RLIM_INFINITY)); "
        "command.run(worker.main)"
    )
    arguments = harness.command(tmp_path / "run", data, 1, *more, f"--batch-size={batch_size}")
    arguments[1:3] = ["-c", limited]
    code, printed = harness.run(arguments, tmp_path)
    assert code == ExitCode.ERROR, printed
    documents = f"{batch_size} documents for this process"
    assert f"out of memory with --batch-size {batch_size}, which is {documents}" in printed
    assert f"try --batch-size {batch_size // 2}" in printed
    assert "Traceback" not in printed


def test_a_step_without_a_finite_loss_does_not_lower_the_train_loss():
    progress = Progress()
    for loss in (100.0, float("nan"), float("inf"), 120.0):
        progress.count(50, loss)
    assert (progress.documents, progress.train_loss) == (200, 2.2)
    progress.begin_epoch(1)
    progress.count(50, 50.0)
    assert progress.train_loss == 1
