"""Features that the installed Horovod was built with."""

from __future__ import annotations

import importlib
import importlib.util
import sys

from crepe_dist.errors import UserError

BUILD = "build it with nvcc and HOROVOD_GPU_OPERATIONS=NCCL, as docs/install.md says"
NEWEST_PYTHON = 3, 11  # that MXNet has a wheel for
KINDS = ("gloo", "mpi", "nccl", "cuda", "rocm", "ddl", "ccl")


def is_installed() -> bool:
    """Return whether Horovod is installed, without importing it."""
    return importlib.util.find_spec("horovod") is not None


def built() -> dict[str, bool]:
    """Return the result of Horovod's ``<kind>_built()`` for each of ``KINDS``; imports MXNet.

    Raises:
        ImportError, OSError: Horovod for MXNet is missing, or its library cannot be loaded.
    """
    horovod = importlib.import_module("horovod.mxnet")
    return {kind: bool(getattr(horovod, f"{kind}_built")()) for kind in KINDS}


def how_to_install(for_gpus: bool) -> str:
    """Describe how to install Horovod for that flavour of MXNet."""
    other_python = " -p 3.11" * (sys.version_info[:2] > NEWEST_PYTHON)
    command = f"uv sync --inexact --group horovod{other_python}"
    return BUILD if for_gpus else f"install it (`{command}`; without uv see docs/install.md)"


def without_cuda() -> UserError:
    """Return the error for several processes on GPUs with a Horovod built without CUDA."""
    return UserError(
        "Horovod was built without CUDA, and MXNet's GPU flavour is installed",
        "it would access GPU memory as main memory, so only processes on the CPU can train together",
        f"{BUILD}; or train in one process on one GPU, or in several with --device cpu",
        on_all_ranks=True,
    )
