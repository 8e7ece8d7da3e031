"""The launcher, this process's rank and its environment, and preparations for the import of MXNet."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass

from crepe_dist import hardware
from crepe_dist.distributed import mxnet_cuda
from crepe_dist.errors import UserError

HOROVODRUN = "horovodrun"
MPI = "Open MPI", "MPICH"
NUM_THREADS_ENV = "OMP_NUM_THREADS"
# (launcher, rank, size, local size); the first one whose rank and size are both set counts.
# RANK and WORLD_SIZE are torchrun's convention, and set by hand in manifests and scripts: they take precedence over a
# scheduler's own variables, which may describe the surrounding process.
# Slurm: SLURM_NTASKS is also set in a batch script, which is a single process; only srun sets the step's variable.
LAUNCHERS = (
    (HOROVODRUN, "HOROVOD_RANK", "HOROVOD_SIZE", "HOROVOD_LOCAL_SIZE"),
    ("torchrun", "RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"),
    (MPI[0], "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_SIZE"),
    (MPI[1], "PMI_RANK", "PMI_SIZE", "MPI_LOCALNRANKS"),
    ("srun", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_STEP_TASKS_PER_NODE"),
)
# By default MXNet times cuDNN's convolutions and takes the fastest one, which may be another one in the next run, and
# allows those that add in any order (checked with MXNet 1.9.1: src/operator/nn/cudnn/cudnn_convolution-inl.h and
# cudnn_pooling-inl.h). A resumed run would not be bit-identical. On Ampere and later, cuBLAS and cuDNN also round the
# factors of float32 products to TF32, with the 10 bits of float16 (linalg.h, ``VERSION_ADJUSTED_TF32_MATH``; NVIDIA's
# "cuDNN developer guide", ``CUDNN_DEFAULT_MATH``).
MXNET_ENVIRONMENT = {
    "MXNET_CUDNN_AUTOTUNE_DEFAULT": "0",
    "MXNET_ENFORCE_DETERMINISM": "1",
    "NVIDIA_TF32_OVERRIDE": "0",
    "MXNET_USE_FUSION": "0",  # compiles operators to PTX, which drivers older than NVRTC do not translate
}
# Optional MXNet imports that we never need.
UNUSED_MXNET_IMPORTS = ("scipy", "sklearn", "onnx")


@dataclass(frozen=True)
class LauncherEnv:
    """Place of this process among those that its launcher started.

    ``launcher`` is empty for a process started by hand. ``local_size`` is 1 if the environment gives no single one.
    """

    launcher: str = ""
    rank: int = 0
    size: int = 1
    local_size: int = 1


def read_launcher_env(environment: Mapping[str, str] = os.environ) -> LauncherEnv:
    """Read the place of this process from the environment."""
    for launcher, *names in LAUNCHERS:
        rank, size, local_size = (environment.get(name, "") for name in names)
        if rank.isdecimal() and size.isdecimal():
            # For several nodes, Slurm's may read "2(x3),1".
            return LauncherEnv(launcher, int(rank), int(size), int(local_size) if local_size.isdecimal() else 1)
    return LauncherEnv()


def require_complete_rank_env(launch: LauncherEnv, environment: Mapping[str, str] = os.environ) -> None:
    """Check that a process which trains alone is not one of several.

    Raises:
        UserError: it has been told their number, or a rank other than 0, and not both.
    """
    for _, rank, size, *_ in LAUNCHERS if not launch.launcher else ():
        number, processes = environment.get(rank, ""), environment.get(size, "")
        if processes not in ("", "1") or (number.isdigit() and int(number) > 0):
            raise UserError(
                f"{size} is {processes or 'not set'!r}, and {rank} is {number or 'not set'!r}",
                "each of several processes has a rank of its own, and none of them trains alone",
                f"set both to numbers, {rank} from 0; for a single process unset both",
            )


def default_num_threads(processes: int = 1) -> int:
    """Return the number of threads of a process: OMP_NUM_THREADS, or else its share of the host's cores.

    Args:
        processes: number of processes that share the cores.

    Raises:
        UserError: OMP_NUM_THREADS is not a number above zero.
    """
    share = max(1, hardware.num_cores() // processes)
    number = (os.environ.get(NUM_THREADS_ENV, "").strip() or str(share)).split(",")[0].strip()
    if not number.isdecimal() or int(number) == 0:
        raise UserError(f"{NUM_THREADS_ENV} is {number!r}", remedy="give a number of threads above zero, or unset it")
    return int(number)


def require_single_process(command: str) -> None:
    """Raise ``UserError`` if a launcher has started several processes of a command that is one."""
    if (size := read_launcher_env().size) > 1:
        raise UserError(f"{command} was started in {size} processes", remedy="start it without a launcher")


def set_omp_threads(processes: int = 1) -> None:
    """Set OMP_NUM_THREADS to the result of ``threads`` unless it is set.

    Must run before MXNet is imported: MXNet reads it once and otherwise takes half the cores in every process.
    """
    number = default_num_threads(processes)
    if not os.environ.get(NUM_THREADS_ENV, "").strip():
        os.environ[NUM_THREADS_ENV] = str(number)


def has_mxnet() -> bool:
    """Return whether MXNet is installed, without importing it."""
    return sys.modules.get("mxnet") is not None or importlib.util.find_spec("mxnet") is not None


def import_mxnet(purpose: str = "training without our own kernels") -> None:
    """Import MXNet after the preparations that must come before it: threads, CUDA's libraries, and ``ENVIRONMENT``.

    MXNet imports SciPy, scikit-learn and ONNX if they are installed, for features that we do not use. The first two
    take longer than MXNet itself, ONNX 0.1 s, so they are hidden from it. If MXNet cannot be imported, the next import
    of it reports why.

    Args:
        purpose: what needs MXNet, for the message if it is not installed.

    Raises:
        UserError: MXNet or a library that it needs is not installed, or OMP_NUM_THREADS is malformed.
    """
    if not has_mxnet():
        raise UserError(
            f"{purpose} needs MXNet, which is not installed",
            "MXNet 1.9.1 needs Python 3.9, 3.10 or 3.11 and NumPy 1.23",
            "in a clone of the repository: uv sync --inexact --group horovod, or on a GPU uv sync --extra gpu --group "
            "cu112; elsewhere: pip install mxnet==1.9.1 'numpy<1.24'",
        )
    set_omp_threads(read_launcher_env().local_size)
    for name, value in MXNET_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if error := mxnet_cuda.load_error():
        raise error
    hidden = [name for name in UNUSED_MXNET_IMPORTS if name not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]  # None: not installed
    try:
        with contextlib.suppress(ImportError, OSError):
            importlib.import_module("mxnet")
    finally:
        for name in hidden:
            del sys.modules[name]


def env_without_rank() -> dict[str, str]:
    """Return the variables that a process inherits which is started here: not this one's place among others."""
    place = {name for _, *names in LAUNCHERS for name in names}
    return {name: value for name, value in os.environ.items() if name not in place}
