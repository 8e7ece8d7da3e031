"""Reading of the rank environment that a launcher has set, and preparations for the import of MXNet."""

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
TORCHRUN = "torchrun"
OPEN_MPI = "Open MPI"
MPI = OPEN_MPI, "MPICH"
NUM_THREADS_ENV = "OMP_NUM_THREADS"
# Each launcher, with its environment variables for the rank, the world size and the local size. The first launcher
# whose rank and world size are both set is used. RANK and WORLD_SIZE are torchrun's convention. Users also set them in
# manifests and scripts, so they take precedence over the variables of MPI and Slurm, which a process may have inherited
# from its parent. SLURM_NTASKS is not used, because Slurm also sets it in a batch script, which is a single process.
LAUNCHERS = (
    (HOROVODRUN, "HOROVOD_RANK", "HOROVOD_SIZE", "HOROVOD_LOCAL_SIZE"),
    (TORCHRUN, "RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"),
    (OPEN_MPI, "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_SIZE"),
    (MPI[1], "PMI_RANK", "PMI_SIZE", "MPI_LOCALNRANKS"),
    ("srun", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_STEP_TASKS_PER_NODE"),
)
# Variables that make MXNet deterministic. By default, MXNet times cuDNN's convolution algorithms and uses the fastest
# one, which may differ in the next run. MXNet also allows algorithms with an arbitrary order of additions (checked with
# MXNet 1.9.1: src/operator/nn/cudnn/cudnn_convolution-inl.h and cudnn_pooling-inl.h). Under these defaults, a resumed
# run would not be bit-identical. On Ampere and later GPUs, cuBLAS and cuDNN round the factors of float32 products to
# TF32, which has the 10 mantissa bits of float16 (linalg.h, ``VERSION_ADJUSTED_TF32_MATH``; NVIDIA's "cuDNN developer
# guide", ``CUDNN_DEFAULT_MATH``).
MXNET_ENVIRONMENT = {
    "MXNET_CUDNN_AUTOTUNE_DEFAULT": "0",
    "MXNET_ENFORCE_DETERMINISM": "1",
    "NVIDIA_TF32_OVERRIDE": "0",
    "MXNET_USE_FUSION": "0",  # Fusion compiles operators to PTX, which a driver older than NVRTC cannot load.
}
# Optional imports of MXNet that this package does not need.
UNUSED_MXNET_IMPORTS = ("scipy", "sklearn", "onnx")


@dataclass(frozen=True)
class LauncherEnv:
    """Rank of this process among the processes that its launcher started.

    Attributes:
        launcher: Name of the launcher. It is empty for a process that was started without a launcher.
        rank: Rank of this process.
        size: Number of processes.
        local_size: Number of processes of this host. It is 1 if the launcher's variable is missing or is not a number.
    """

    launcher: str = ""
    rank: int = 0
    size: int = 1
    local_size: int = 1


def read_launcher_env(environment: Mapping[str, str] = os.environ) -> LauncherEnv:
    """Read the rank of this process, the world size and the local size from the environment."""
    for launcher, *names in LAUNCHERS:
        rank, size, local_size = (environment.get(name, "") for name in names)
        if rank.isdecimal() and size.isdecimal():
            # The local size of Slurm may be a list such as "2(x3),1" if there are several nodes.
            return LauncherEnv(launcher, int(rank), int(size), int(local_size) if local_size.isdecimal() else 1)
    return LauncherEnv()


def require_complete_rank_env(launch: LauncherEnv, environment: Mapping[str, str] = os.environ) -> None:
    """Check that a process without a detected launcher has no incomplete rank environment.

    Without this check, each process of a misconfigured job would train a complete run.

    Raises:
        UserError: No launcher was detected, but the environment sets a rank above 0, or a world size other than 1.
    """
    for _, rank, size, *_ in LAUNCHERS if not launch.launcher else ():
        rank_value, size_value = environment.get(rank, ""), environment.get(size, "")
        if size_value not in ("", "1") or (rank_value.isdigit() and int(rank_value) > 0):
            raise UserError(
                f"{size} is {size_value or 'not set'}, and {rank} is {rank_value or 'not set'}",
                "a process of a job needs both its rank and the number of processes",
                f"set both to numbers ({rank} counts from 0), or unset both for a single process",
            )


def default_num_threads(processes: int = 1) -> int:
    """Return the number of threads of a process.

    The number is the value of OMP_NUM_THREADS. If that variable is not set, the number is the number of cores divided
    by the number of processes, and at least 1.

    Args:
        processes: Number of processes that share the cores.

    Raises:
        UserError: OMP_NUM_THREADS is not a positive integer.
    """
    cores_per_process = max(1, hardware.num_cores() // processes)
    number = (os.environ.get(NUM_THREADS_ENV, "").strip() or str(cores_per_process)).split(",")[0].strip()
    if not number.isdecimal() or int(number) == 0:
        raise UserError(
            f"{NUM_THREADS_ENV} is {number!r}", remedy="set it to a positive number of threads, or unset it"
        )
    return int(number)


def require_single_process(command: str) -> None:
    """Check that no launcher has started several processes of a command that must run in a single process.

    Raises:
        UserError: A launcher has started several processes.
    """
    if (size := read_launcher_env().size) > 1:
        raise UserError(f"{command} was started in {size} processes", remedy="start it without a launcher")


def set_omp_threads(processes: int = 1) -> None:
    """Set OMP_NUM_THREADS to the result of ``default_num_threads`` unless it is already set.

    Call this function before MXNet is imported, because MXNet reads the variable only at its import. If the variable is
    not set, MXNet uses half of the host's cores in every process.

    Raises:
        UserError: OMP_NUM_THREADS is set, and is not a positive integer.
    """
    number = default_num_threads(processes)
    if not os.environ.get(NUM_THREADS_ENV, "").strip():
        os.environ[NUM_THREADS_ENV] = str(number)


def has_mxnet() -> bool:
    """Return whether MXNet is installed, without importing it."""
    return sys.modules.get("mxnet") is not None or importlib.util.find_spec("mxnet") is not None


def import_mxnet(purpose: str = "training without the native kernels") -> None:
    """Set the number of threads and ``MXNET_ENVIRONMENT``, load CUDA's libraries, and then import MXNet.

    MXNet imports SciPy, scikit-learn and ONNX if they are installed, for features that are not used here. The imports
    of SciPy and scikit-learn take longer than the import of MXNet, and the import of ONNX takes 0.1 s. This function
    hides these packages from MXNet. It ignores a failed import of MXNet, because the next ``import mxnet`` raises the
    error.

    Args:
        purpose: Task that needs MXNet. The error message contains it.

    Raises:
        UserError: MXNet or a library that it needs is not installed, or OMP_NUM_THREADS is malformed.
    """
    if not has_mxnet():
        raise UserError(
            f"{purpose} needs MXNet, which is not installed",
            "MXNet 1.9.1 needs Python 3.11 and NumPy 1.23",
            "in a clone of the repository: uv sync --inexact --group horovod, or on a GPU uv sync --extra gpu --group "
            "cu112; elsewhere: pip install mxnet==1.9.1 'numpy<1.24'",
        )
    set_omp_threads(read_launcher_env().local_size)
    for name, value in MXNET_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if error := mxnet_cuda.load_error():
        raise error
    hidden = [name for name in UNUSED_MXNET_IMPORTS if name not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]  # With None, an import raises ImportError.
    try:
        with contextlib.suppress(ImportError, OSError):
            importlib.import_module("mxnet")
    finally:
        for name in hidden:
            del sys.modules[name]


def env_without_rank() -> dict[str, str]:
    """Return a copy of this process's environment for a child process, without the rank variables of any launcher."""
    rank_variables = {name for _, *names in LAUNCHERS for name in names}
    return {name: value for name, value in os.environ.items() if name not in rank_variables}
