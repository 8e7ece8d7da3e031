"""Runs and commands on emulated GPUs: the bits of any number of them, after a failure too, and the CPU's answers."""

import json
import re
import shutil
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

import crepe_dist
from crepe_dist.cuda import nccl
from crepe_dist.distributed.device import Device
from crepe_dist.model.backend import Backend, choose_backend
from crepe_dist.settings.options import ModelOptions
from tests.chaos import harness
from tests.chaos.harness import slow
from tests.conftest import QUICK, command, needs_kernels, prepare_with_capitals, run
from tests.helpers import cuda_emulator
from tests.helpers.engines import initial, small_shape
from tests.helpers.needs import needs
from tests.helpers.programs import program
from tests.training.test_without_mxnet import FOLDER

pytestmark = needs("g++")
# Dropout, Adam, and fixed-point scales that the first step chooses. The run is short because a step takes a second.
SHORT = ("--device=gpu", "--epochs=1")
PAPER = "--model=paper", "--size=tiny"


def train(
    run_dir: Path, data: Path, processes: int, *more: str, fault=None, supervised: bool = False, **told: object
) -> str:
    """Train with one GPU per process, and return the output. MXNet and Horovod are hidden from a single process.

    Several processes are started by ``horovodrun``, or by the supervisor if there is no Horovod or on request.
    """
    if supervised or (processes > 1 and not find_spec("horovod")):
        flags = ("--max-restarts=0",) * (fault is not None)
        arguments = harness.supervise(run_dir, data, processes, *SHORT, *more, flags=flags)
    else:
        arguments = harness.command(run_dir, data, processes, *SHORT, *more)
    with cuda_emulator.for_processes(*[FOLDER] * (processes == 1), DRIVER_GPUS=processes, **told):
        code, printed = harness.run(arguments, run_dir.parent, fault)
    assert (code != 0) == (fault is not None), printed
    return printed


@pytest.fixture(scope="module")
def on_gpu() -> Backend:
    """Return the backend of the default network on a GPU."""
    with cuda_emulator.used():
        return choose_backend(ModelOptions(), Device("gpu", 0), small_shape("crepe"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with two thirds of the rows of ``data_with_capitals``, because the emulator computes slowly."""
    return prepare_with_capitals(tmp_path_factory.mktemp("source"), train_rows=201, test_rows=65)


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory) -> tuple[Path, str]:
    """Folder of an undisturbed run on one GPU, and its output."""
    run_dir = tmp_path_factory.mktemp("gpu") / "run"
    return run_dir, train(run_dir, data, 1)


@pytest.fixture(scope="module")
def alone(trained) -> Path:
    return trained[0]


@needs_kernels
def test_training_needs_no_mxnet(trained, on_gpu):
    folder, printed = trained
    assert "1 process, gpu(0)\n" in printed
    assert f"computes  in {on_gpu}\n" in printed
    (checkpoint,) = (folder / "checkpoints").glob("*.params")
    computed = json.loads(checkpoint.with_suffix(".json").read_text())["numerics"]
    assert computed == {**on_gpu.as_settings(), "device": "gpu(0)"}
    assert json.loads((folder / "result.json").read_text())["provenance"]["computes"] == str(on_gpu)


@needs_kernels
@pytest.mark.parametrize("processes", [2, slow(4)])
def test_any_number_of_gpus_computes_the_same_bits(processes, data, alone, tmp_path):
    printed = train(tmp_path / "run", data, processes)
    assert ("summed by NCCL" if nccl.version() or not cuda_emulator.is_real() else "has no NCCL") in printed, printed
    harness.assert_same(tmp_path / "run", alone)


@pytest.fixture(scope="module")
def paper_alone(tmp_path_factory) -> Path:
    """Folder of a run of the paper's network on one GPU. ``few`` is its data set, in the same folder."""
    folder = tmp_path_factory.mktemp("paper")
    train(folder / "run", prepare_with_capitals(folder, train_rows=81, test_rows=9), 1, *PAPER)
    return folder / "run"


@needs_kernels
@pytest.mark.parametrize("gpus", [2, slow(4)])
def test_any_number_of_gpus_and_a_broken_run_compute_the_same_bits_of_the_papers_network(gpus, paper_alone, tmp_path):
    data, fault = paper_alone.with_name("prepared"), {"kind": "SIGKILL", "rank": gpus - 1, "phase": "train", "step": 3}
    train(tmp_path / "run", data, gpus, *PAPER, fault=fault | {"once": str(tmp_path / "struck")})
    assert 0 < harness.saved_step(tmp_path / "run") < 4
    train(tmp_path / "run", data, gpus, *PAPER)
    harness.assert_same(tmp_path / "run", paper_alone)


@pytest.mark.slow
@needs_kernels
def test_any_number_of_gpus_computes_the_same_bits_of_the_small_size(tmp_path):
    checkpoints = []
    for gpus in (1, 2, 4):
        folder = tmp_path / str(gpus)
        folder.mkdir()
        data = prepare_with_capitals(folder, train_rows=64, test_rows=9)
        train(folder / "run", data, gpus, "--model=paper", "--size=small", "--batch-size=32")
        (checkpoint,) = (folder / "run/checkpoints").glob("*.params")
        checkpoints.append(checkpoint.read_bytes())
    assert checkpoints[0] == checkpoints[1] == checkpoints[2]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("told", "reason"),
    [({}, "NCCL cannot use several MIG slices of one GPU"), ({"EMULATOR_NCCL_VERSION": 0}, "rank 0 has no NCCL")],
    ids=["with NCCL", "without NCCL"],
)
def test_slices_of_a_gpu_are_summed_without_nccl(told, reason, data, alone, tmp_path):
    printed = train(tmp_path / "run", data, 2, supervised=True, DRIVER_SLICES=1, **told)
    assert f"({reason}" in printed, printed
    harness.assert_same(tmp_path / "run", alone)


@needs_kernels
@pytest.mark.parametrize(
    ("kind", "processes", "message"),
    [
        ("SIGKILL", 1, ""),
        slow("SIGKILL", 2, "stopped because another process ended or did not answer"),  # in a sum
        slow("SIGSTOP", 2, r"error: no progress for \d+ s at step [78] \(train\)"),
    ],
)
def test_a_broken_run_resumes_to_the_same_bits(kind, processes, message, data, alone, on_gpu, tmp_path):
    fault = {"kind": kind, "rank": processes - 1, "phase": "train", "step": 7, "once": str(tmp_path / "struck")}
    printed = train(tmp_path / "run", data, processes, "--safety.watchdog-s=15", fault=fault)
    assert re.search(message, printed), printed
    assert 0 < harness.saved_step(tmp_path / "run") < 8
    shutil.copytree(tmp_path / "run", tmp_path / "on the CPU")
    train(tmp_path / "run", data, processes)
    harness.assert_same(tmp_path / "run", alone)
    if processes == 1:
        printed = train(tmp_path / "on the CPU", data, 1, "--device=cpu")
        assert f"the kernels change from {on_gpu.build_name} to " in printed, printed


@pytest.mark.slow
@pytest.mark.parametrize(
    ("network", "precision", "most"),
    [("crepe", "float32", 5e-3), ("crepe", "auto", 0.1), ("ngrams", None, 5e-3), ("paper", "float32", 5e-3)],
)
def test_an_epoch_ends_near_the_cpus(network, precision, most, data, tmp_path):
    """``most`` limits the difference of a parameter relative to the distance that training moved it.

    The network ``ngrams`` has no precision. Only CPUs round the values of rows to float16 when they read them.
    """
    # With steps this small, rounding errors do not grow.
    flags = f"--model={network}", "--optimizer=sgd", "--learning-rate=0.01"
    on_gpu, on_cpu = ((f"--precision={precision}",), ("--precision=float32",)) if precision else ((), ())
    train(tmp_path / "gpu", data, 1, *flags, *on_gpu)
    train(tmp_path / "cpu", data, 1, *flags, *on_cpu, "--device=cpu")
    start = initial(crepe_dist.load(tmp_path / "cpu", device="cpu").engine.config).values
    got, expected = harness.result(tmp_path / "gpu"), harness.result(tmp_path / "cpu")
    for name, array in expected.items():
        assert np.linalg.norm(got[name] - array) <= most * np.linalg.norm(array - start[name]), name


@needs_kernels
@pytest.mark.parametrize("trained_run", ["alone", "paper_alone"])
def test_answers_are_those_of_the_cpu(trained_run, request, tmp_path):
    run_dir = request.getfixturevalue(trained_run)
    with cuda_emulator.for_processes(FOLDER):
        printed = run(program("helpers/fit_and_predict.py", run_dir, "gpu", "cpu"), tmp_path)
        rankings, labels, imported = json.loads(printed)
    assert len(rankings[0]) == 6
    assert all(one == pytest.approx(other, abs=0.01) for one, other in zip(*rankings))
    assert labels == ["bad", "good", "bad", "good"]
    assert imported == []


@pytest.mark.slow
def test_scores_are_those_of_the_cpu(data, alone, tmp_path):
    with cuda_emulator.for_processes(FOLDER):
        evaluate = command("evaluate", alone, "--data", data, "--device")
        tables = [run([*evaluate, device], tmp_path).splitlines()[:4] for device in ("gpu", "cpu")]
    assert tables[0] == tables[1]


@needs_kernels
@pytest.mark.parametrize(("network", "memory"), [((), 1 << 20), (PAPER, 11 << 20)])
def test_a_gpu_that_is_too_small(network, memory, data, tmp_path):
    arguments = command("train", "--data", data, "--run-dir", tmp_path / "run", "--device=gpu", *QUICK, *network)
    with cuda_emulator.for_processes(DRIVER_MEMORY=memory):
        assert "error: out of memory with " in run(arguments, tmp_path, code=1)


@needs_kernels
@pytest.mark.parametrize(
    ("told", "name", "why"),
    [
        ({"DRIVER_VERSION": 11080}, "GPU of a test", "no kernels can compute this network on gpu(0)"),
        ({"DRIVER_FAILS": 803}, "the GPU", "cuInit: CUDA_ERROR_SYSTEM_DRIVER_MISMATCH (803)"),
    ],
)
def test_a_gpu_that_is_not_used_is_told_at_the_start(told, name, why, data, tmp_path):
    arguments = command("train", "--data", data, "--run-dir", tmp_path / "run", *QUICK, "--epochs=1")
    with cuda_emulator.for_processes(**told):
        printed = run(arguments, tmp_path)
        assert why in run([*arguments, "--device=gpu"], tmp_path, code=1)
    (warning,) = printed.split(f"warning: {name} is not used, the CPU computes: ")[1:]
    assert why in warning
    assert "epoch 1 of 1" in warning
