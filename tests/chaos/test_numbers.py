"""Non-finite numbers and replica divergence are found before the update and before a save."""

import pytest

from crepe_dist.data.batch_schedule import BatchSchedule
from crepe_dist.data.dataset import open_dataset
from crepe_dist.data.loader import shard_range, training_order
from crepe_dist.errors import ExitCode
from tests.chaos import harness
from tests.chaos.harness import slow
from tests.conftest import needs_kernels, records


@needs_kernels
@pytest.mark.parametrize(("kind", "processes", "rank"), [("inf", 2, 1), slow("nan", 3, 2)])
def test_all_ranks_stop_before_the_update(trial, kind, processes, rank):
    code, printed = trial.run(processes, fault=trial.fault(kind, 17, rank), supervised=processes == 2)
    assert code == ExitCode.ERROR, printed
    # Steps are numbered from 1. Step 18 is the fifth step of the second epoch. A step has 25 documents.
    first, end = shard_range(100, 125, rank, processes, 4)
    order = training_order(open_dataset(trial.data).splits["train"], 0, 1, BatchSchedule(25, growth=64))
    rows = ", ".join(map(str, order[first:end].tolist()))
    what = f"non-finite loss or gradient at step 18 on rank {rank} (rows {rows} of the train split)"
    assert printed.count(what) == 1, printed
    assert ("Traceback" if processes == 2 else "<stderr>:Traceback") not in printed
    assert harness.saved_step(trial.run_dir) >= 13


@needs_kernels
def test_divergence_in_the_last_step_before_scoring_writes_nothing(trial):
    fault = trial.fault("diverged", 13, 1)  # The last step of the epoch.
    rarely = "--state.save-steps=100"  # A save in the same step would find the damage.
    code, printed = trial.run(2, rarely, fault=fault, supervised=True)
    assert code == ExitCode.ERROR, printed
    assert printed.count("error: training diverged") == 1, printed
    assert "Warning" not in printed
    assert not records(trial.run_dir, "epoch")
    assert not list(trial.run_dir.glob("checkpoints/*"))


@needs_kernels
@pytest.mark.parametrize(("processes", "odd", "every"), [(2, 1, 100), slow(3, 0, 4)])
def test_a_replica_that_differs_is_named_and_not_saved(trial, processes, odd, every):
    """The replicas are compared at the end of each epoch, and before each save."""
    flags, fault = f"--state.save-steps={every}", trial.fault("diverge", 17, odd)
    code, printed = trial.run(processes, flags, fault=fault, supervised=processes == 2)
    assert code == (ExitCode.FAILURE if processes == 2 else 1), printed  # horovodrun has exit codes of its own
    named = odd if odd or processes > 2 else 1  # With two ranks, rank 0 counts as correct.
    assert printed.count(f"the parameters of rank {named} differ from the parameters of the other ranks") == 1
    assert harness.saved_step(trial.run_dir) <= 17


def test_out_of_memory_names_the_batch(trial):
    """A limit on the memory of the process simulates a device with too little memory."""
    more = ("--model=paper", "--size=small", "--batch-size=16384")
    arguments = harness.command(trial.run_dir, trial.data, 1, *more, module="tests.chaos.limited_worker")
    code, printed = harness.run(arguments, trial.folder)
    assert code == ExitCode.ERROR, printed
    assert "out of memory with --batch-size 16384" in printed
    assert "try --batch-size 8192" in printed
