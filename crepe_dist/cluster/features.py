"""What the Horovod that is installed was compiled with."""

from __future__ import annotations

import importlib
import importlib.util

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
