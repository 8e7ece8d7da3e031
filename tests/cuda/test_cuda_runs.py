"""Runs on emulated GPUs: the same bits on any number of them, and after a process was killed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.chaos import harness
from tests.chaos.harness import slow
from tests.helpers import cuda_emulator
from tests.helpers.needs import needs

pytestmark = needs("g++")
# Dropout and Adam, and quanta that the first step has to find; a short run, because a step takes about a second.
SHORT = ("--device=gpu", "--epochs=1")


def train(run_dir: Path, data: Path, processes: int, *more: str, fault=None, **told: object) -> str:
    """Train with a GPU for each process; return what is printed."""
    arguments = harness.command(run_dir, data, processes, *SHORT, *more)
    with cuda_emulator.for_processes(DRIVER_GPUS=processes, **told):
        code, printed = harness.run(arguments, run_dir.parent, fault)
    assert (code != 0) == (fault is not None), printed
    return printed


@pytest.fixture(scope="module")
def alone(data, tmp_path_factory):
    """A run on one GPU that nothing happened to."""
    run_dir = tmp_path_factory.mktemp("gpu") / "run"
    printed = train(run_dir, data, 1)
    assert "float16, own kernels (CUDA" in printed, printed
    return run_dir


@pytest.mark.parametrize("processes", [2, slow(4)])
def test_any_number_of_gpus_computes_the_same_bits(processes, data, alone, tmp_path):
    printed = train(tmp_path / "run", data, processes)
    assert "summed by NCCL" in printed, printed
    harness.assert_same(tmp_path / "run", alone)


def test_slices_of_a_gpu_are_summed_without_nccl(data, alone, tmp_path):
    printed = train(tmp_path / "run", data, 2, DRIVER_SLICES=1)
    assert "(NCCL takes no slices of one GPU)" in printed, printed
    harness.assert_same(tmp_path / "run", alone)


@pytest.mark.parametrize(
    ("kind", "processes", "message"),
    [
        ("SIGKILL", 1, ""),
        slow("SIGKILL", 2, "stopped because another process ended or did not answer"),  # in a sum
        slow("SIGSTOP", 2, r"error: no progress for \d+ s at step [78] \(train\)"),
    ],
)
def test_a_broken_run_resumes_to_the_same_bits(kind, processes, message, data, alone, tmp_path):
    fault = {"kind": kind, "rank": processes - 1, "phase": "train", "step": 7, "once": str(tmp_path / "struck")}
    printed = train(tmp_path / "run", data, processes, "--safety.watchdog-s=15", fault=fault)
    assert re.search(message, printed), printed
    assert 0 < harness.saved_step(tmp_path / "run") < 8
    train(tmp_path / "run", data, processes)
    harness.assert_same(tmp_path / "run", alone)
