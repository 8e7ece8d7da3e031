"""Command `doctor`, which checks whether this machine can train. Each check has its own function."""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, NamedTuple

from crepe_dist import extras, hardware, network_registry
from crepe_dist.cuda import compiler, driver, nccl
from crepe_dist.cuda.gpu import SHARED_GPU_HINT, Gpu
from crepe_dist.data.char_encoder import CharEncoder
from crepe_dist.distributed import mxnet_cuda
from crepe_dist.distributed.device import CPU, Device
from crepe_dist.distributed.launch import read_launcher_env
from crepe_dist.elastic.training_subprocess import LOG, train_in_subprocess
from crepe_dist.errors import ExitCode, UserError, escape_to_one_line
from crepe_dist.files.atomic_write import write_text
from crepe_dist.files.folders import temporary_folder
from crepe_dist.formatting import pluralize, size
from crepe_dist.model.backend import Backend, choose_backend
from crepe_dist.model.network_config import NetworkConfig
from crepe_dist.native import library
from crepe_dist.runs.checkpoint import RUNS
from crepe_dist.settings.config import NO_REPORTS
from crepe_dist.settings.fields import PATH_ARGUMENT, setting
from crepe_dist.settings.flags import Command
from crepe_dist.settings.options import MIN_FEATURE_LEN, ModelOptions

INSTALL_HINT = "reinstall with `uv sync --inexact --group horovod` (without uv see docs/install.md)"
GPU_TESTS = Path(__file__).parents[2] / "benchmarks" / "gpu.py"  # Only in a clone of the repository.
GPU_TESTS_COMMAND = "uv run --group gpu-tests benchmarks/gpu.py, and attach gpu.md and gpu.json to an issue"
NOT_USED = "not used"  # Part of the message about a GPU that cannot compute the default network.
# Time limit of a subprocess. It allows for imports from a slow disk, and for compiling the kernels on a GPU.
TIMEOUT_SECONDS = 120.0
# Size in bytes of a run with the default network, measured on the sample with batches of 64. The run has two saved
# states of 112 MB, and checkpoints of 19 MB.
RUN_BYTES = 300_000_000
ROWS = 64  # Number of training rows of the trial.
TRIAL_SETTINGS = {"data.source": "data", "data.batch_size": ROWS, "model.buckets": 4096, "training.epochs": 1}
PREPARE_ARGUMENTS = ("-m", "crepe_dist", "prepare", "rows.csv", "--out=data", "--test=0.5")
# Part of the output of `crepe train` that describes the processes and the device.
TRAIN_LINE = re.compile(r"\d+ process(?:es on \d+ hosts? \(.*\))?, .*")
# Program that prints the components with which Horovod was built. The program runs in a subprocess, because an
# incompatible library may crash or hang.
HOROVOD_PROBE = """
from crepe_dist.distributed.launch import import_mxnet
import_mxnet()
import horovod.mxnet
print(*[kind for kind in ("gloo", "mpi", "nccl", "cuda") if getattr(horovod.mxnet, f"{kind}_built")()])
"""


class Check(NamedTuple):
    """Result of one check.

    Attributes:
        name: Subject of the check, such as ``CPU kernels``.
        message: Result of the check, or description of the problem.
        level: ``ok``, ``note`` (training works, but could be improved) or ``problem`` (training does not work).
        remedy: Instructions for the user in case of a note or a problem.
    """

    name: str
    message: str
    level: Literal["ok", "note", "problem"] = "ok"
    remedy: str = ""


@dataclass
class Doctor(Command):
    """Check whether this machine can train: versions, kernels, GPUs, Horovod and the disk.

    Then train on a few texts, with one process and with several processes. The command takes about 20 s and leaves no
    files. If a launcher starts the command in several processes, it compares their hosts, and measures the network
    between them and the speed of their shared folder, but does not train.
    """

    usage = """
        crepe doctor
        MASTER_ADDR=node1 srun crepe doctor --run-dir /shared/runs    check all hosts of a job; node1 is its first node
        mpiexec -n 8 -hosts node1:4,node2:4 crepe doctor
        crepe supervise -np 4 --nnodes 2 --node-rank 0 --master-addr node1 doctor

      exit codes: 0 ready; 1 not ready (the last line says what to do); 76 a check took too long
      """

    quick: bool = setting(False, "Only check; do not train.")
    run_dir: Path | None = setting(
        None,
        "Folder of runs, which must be writable. Default: this folder; with several processes, runs/.",
        PATH_ARGUMENT,
    )

    def run(self) -> None:
        if read_launcher_env().size > 1:
            from crepe_dist.commands.cluster_doctor import run_in_group

            run_in_group(self.run_dir or RUNS)
            return
        done = []
        for check in run_checks(nearest_folder(self.run_dir or Path())):
            done.append(check)
            print_check(check)
        gpus = sum(check.name.startswith("GPU ") and NOT_USED not in check.message for check in done)
        trials = [(1, "auto"), (gpus, "gpu") if gpus > 1 else (2, "cpu")]
        with temporary_folder() as folder:
            for processes, device in trials:
                if not self.quick and all(check.level != "problem" for check in done):
                    done.append(run_trial(processes, device, folder))
                    print_check(done[-1])
        if problems := [check for check in done if check.level == "problem"]:
            print(f"not ready: {problems[0].name}: {escape_to_one_line(problems[0].message)}. Do: {problems[0].remedy}")
            sys.exit(ExitCode.ERROR)
        where = "the CPU" + f" and {pluralize(gpus, 'GPU')}" * bool(gpus)
        print(f"ready: one or more processes can train on {where}{' (not tried)' * self.quick}")


def print_check(check: Check) -> None:
    """Print the result of a check, and its remedy."""
    print(f"{check.level:<8} {check.name:<13} {escape_to_one_line(check.message)}", flush=True)
    if check.remedy:
        print(f"{'':<22} do: {escape_to_one_line(check.remedy)}", flush=True)


def run_checks(folder: Path) -> Iterator[Check]:
    """Run all checks, in the order of their output.

    Args:
        folder: Folder of runs.
    """
    yield Check("machine", ", ".join(f"{name} {value}" for name, value in hardware.describe().items() if value))
    yield check_kernels()
    yield from check_gpus()
    yield check_horovod()
    yield check_disk(folder)


def default_network() -> tuple[ModelOptions, NetworkConfig]:
    """Return the options and the configuration of a small default network."""
    options = ModelOptions(buckets=1 << 14, embedding_rows=1 << 14)
    config_class: type[NetworkConfig] = network_registry.config_class("crepe")
    return options, config_class.for_data(options, CharEncoder(feature_len=MIN_FEATURE_LEN), 4, 1000)


def default_backend(device: Device) -> Backend:
    """Return the backend of the default network: its kernels and its precision."""
    options, config = default_network()
    return choose_backend(options, device, config)


def check_kernels() -> Check:
    """Check whether there are compiled kernels for this processor."""
    build, trouble = library.find()
    remedy = "install a C++ compiler (g++), and reinstall"
    if build is None:
        return Check("CPU kernels", f"none: {trouble}", "problem", remedy)
    return Check("CPU kernels", str(default_backend(CPU)), *(("note", remedy) if trouble else ()))


def check_gpus() -> Iterator[Check]:
    """Check the driver, each GPU, and the libraries that GPUs need."""
    version = driver.driver_version()
    if version is None:
        yield Check("GPU", f"none ({error.why})" if (error := driver.load_error()) else "none")
        return
    error = driver.init_error()
    shows = f"for CUDA {driver.dotted(version)}" + (f"; {error.what}: {error.why}" if error else "")
    yield Check("NVIDIA driver", shows, *(("note", error.remedy) if error else ()))
    if not error and not driver.gpu_count():
        error = driver.no_gpu_error()
        yield Check("GPU", f"none: {error.why}", "note", error.remedy)
    for gpu in range(driver.gpu_count()):
        shows = f"{driver.gpu_name(gpu)}, compute capability {driver.dotted(driver.compute_capability(gpu))}"
        try:
            backend = default_backend(Device("gpu", gpu))
            free, total = Gpu(gpu).memory()
        except UserError as error:
            yield Check(f"GPU {gpu}", f"{shows}; {NOT_USED}: {error.why or error.what}", "note", error.remedy)
        else:
            shows = f"{shows}; {backend}; {size(free)} of {size(total)} free"
            yield Check(f"GPU {gpu}", shows, *(("note", SHARED_GPU_HINT) if free < total // 2 else ()))
    own = f"NVRTC {'not found' if compiler.missing() else driver.dotted(compiler.version())}"
    if driver.gpu_count() > 1 and not nccl.version():
        what = f"{own}; without NCCL, gradients of several GPUs pass through main memory, which is slower than NCCL"
        yield Check("CUDA kernels", what, "note", extras.install_command("gpus"))
    else:
        yield Check("CUDA kernels", own)
    if driver.gpu_count() and GPU_TESTS.exists():
        yield Check("CUDA tests", f"have run on no GPU yet; {GPU_TESTS.name} writes a table", remedy=GPU_TESTS_COMMAND)


def check_horovod() -> Check:
    """Check MXNet and Horovod. Only ``horovodrun`` needs them."""
    on_gpus = mxnet_cuda.is_installed()
    if error := mxnet_cuda.load_error():
        return Check("MXNet", error.what, "problem", error.remedy)
    if find_spec("horovod") is None:
        return Check("Horovod", "not installed; several processes start by crepe supervise, mpiexec and others")
    try:
        done = subprocess.run(
            [sys.executable, "-c", HOROVOD_PROBE], capture_output=True, text=True, timeout=TIMEOUT_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return Check("Horovod", f"cannot be imported: no answer within {TIMEOUT_SECONDS:g} s", "problem", INSTALL_HINT)
    if done.returncode:
        # Lines without indentation are the error message. Indented lines are the frames of the traceback.
        lines = [line for line in done.stderr.splitlines() if line and not line.startswith(" ")]
        trouble = lines[-1] if lines else f"exit code {done.returncode}"
        return Check("Horovod", f"cannot be imported: {trouble}", "problem", INSTALL_HINT)
    built = done.stdout.split()
    if "gloo" not in built:
        return Check("Horovod", "built without Gloo", "problem", f"{INSTALL_HINT} --reinstall-package horovod")
    if on_gpus and "nccl" not in built:
        what = "built without NCCL: MXNet's gradients on GPUs pass through main memory, which is slower than NCCL"
        return Check("Horovod", what, "note", mxnet_cuda.HOROVOD_BUILD_HINT)
    return Check("Horovod", f"built with {', '.join(built)}")


def nearest_folder(path: Path) -> Path:
    """Return the path, or its nearest parent that is a folder, because training creates the folder of runs."""
    return next((folder for folder in (path, *path.parents) if folder.is_dir()), Path())


def check_disk(folder: Path) -> Check:
    """Check that a folder is writable and has enough free space for a run."""
    remedy = "free some space, change the permissions, or work in another folder"
    try:
        with tempfile.TemporaryFile(dir=folder) as stream:
            os.posix_fallocate(stream.fileno(), 0, 1 << 20)
    except OSError as error:
        return Check("disk", f"{folder.absolute()} is not writable: {error.strerror or error}", "problem", remedy)
    free = shutil.disk_usage(folder).free
    if free < RUN_BYTES:
        return Check("disk", f"{size(free)} free; a run takes about {size(RUN_BYTES)}", "problem", remedy)
    return Check("disk", f"{size(free)} free")


def run_trial(processes: int, device: str, folder: Path) -> Check:
    """Train one step on this machine. The message is the line that ``TRAIN_LINE`` matches.

    Args:
        folder: Temporary folder for the data and the run.
    """
    name = pluralize(processes, "process", "processes")
    try:
        if not (folder / "data").is_dir():
            rows = [f"{'sunny,a warm' if row % 2 else 'rainy,a wet'} day number {row}" for row in range(2 * ROWS)]
            write_text(folder / "rows.csv", "\n".join(["label,text", *rows]) + "\n")
            done = subprocess.run(
                [sys.executable, *PREPARE_ARGUMENTS], cwd=folder, capture_output=True, text=True, check=False
            )
            if done.returncode:
                raise UserError("a few texts cannot be prepared", done.stderr.strip()[-1000:], "reinstall crepe_dist")
        settings = {**NO_REPORTS, **TRIAL_SETTINGS, "device": device, "run_dir": f"run{processes}"}
        if not train_in_subprocess(settings, folder, processes, TIMEOUT_SECONDS):
            raise UserError(
                "it hangs", f"not done within {TIMEOUT_SECONDS:g} s", "report this with the doctor's output"
            )
    except UserError as error:
        return Check(name, f"cannot train: {error.what}; {error.why}", "problem", error.remedy or "report this")
    line = TRAIN_LINE.search((folder / LOG).read_text(encoding="utf-8", errors="replace"))
    return Check(name, f"train: {line[0] if line else 'done'}")
