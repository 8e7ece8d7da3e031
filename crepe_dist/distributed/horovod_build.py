"""What the Horovod that is installed was compiled with."""

from __future__ import annotations

import importlib
import importlib.util

from crepe_dist.errors import UserError

BUILD = "build it with nvcc and HOROVOD_GPU_OPERATIONS=NCCL, as docs/install.md says"
KINDS = ("gloo", "mpi", "nccl", "cuda", "rocm", "ddl", "ccl")


def is_installed() -> bool:
    """Whether there is one, of whatever use; imports nothing of it."""
    return importlib.util.find_spec("horovod") is not None


def built() -> dict[str, bool]:
    """For each of ``KINDS``, what Horovod's own ``<kind>_built()`` says; imports MXNet.

    Raises:
        ImportError, OSError: there is no Horovod for MXNet, or its library cannot be loaded.
    """
    horovod = importlib.import_module("horovod.mxnet")
    return {kind: bool(getattr(horovod, f"{kind}_built")()) for kind in KINDS}


def how_to_install(for_gpus: bool) -> str:
    """Horovod beside that flavour of MXNet."""
    return BUILD if for_gpus else "install it (`uv sync`; without uv see docs/install.md)"


def without_cuda() -> UserError:
    """What is said where several processes are to train on GPUs, and Horovod was not built for that."""
    return UserError(
        "Horovod was built without CUDA, and MXNet's GPU flavour is installed",
        "it takes what is in a GPU's memory for main memory; only processes on the CPU can train together",
        f"{BUILD}; or train in one process on one GPU, or in several with --device cpu",
        on_all_ranks=True,
    )
