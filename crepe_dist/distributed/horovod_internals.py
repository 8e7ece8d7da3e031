"""Horovod's builds, and its undocumented behaviour that the package relies on, one function or constant per trick.

Each was checked with Horovod 0.28.1; check them all before another version is allowed.
"""

from __future__ import annotations

import importlib
import importlib.util
import itertools
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from crepe_dist.errors import PeerGone, UserError

BUILD = "build it with nvcc and HOROVOD_GPU_OPERATIONS=NCCL, as docs/install.md says"
NEWEST_PYTHON = 3, 11  # that MXNet has a wheel for
KINDS = ("gloo", "mpi", "nccl", "cuda")

# Parts of the text of an MXNetError after a lost peer (horovod/common/common.h; Gloo's socket errors): there is no type
# for it. It is raised once. Afterwards the array can be read without an error, but its contents are wrong: discard all
# that depends on it. Checked with Horovod 0.28.1.
LOST_PEER = (
    "Horovod has been shut down",
    "Connection reset by peer",
    "Connection closed by peer",
    "Broken pipe",
    "Read error",
    "Write error",
    "Timed out waiting",
    "Application timeout caused pair closure",
    "Read timeout",
    "Write timeout",
    "NCCL async error",  # read in horovod/common/ops/nccl_operations.cc, not seen
)
_PEER_ADDRESS = re.compile(r"\[(\d+\.\d+\.\d+\.\d+)\]:\d+")

# A worker must not inherit it: at the second ``hvd.init`` of a process it selects another rendezvous protocol than that
# of ``store.py``. ``aborting_nccl`` sets it for the first. Checked with Horovod 0.28.1.
NEVER_SET = "HOROVOD_ELASTIC"
_inits = itertools.count()


def is_installed() -> bool:
    """Return whether Horovod is installed, without importing it."""
    return importlib.util.find_spec("horovod") is not None


def built() -> list[str]:
    """Return those of ``KINDS`` with which Horovod was built; imports MXNet.

    Raises:
        ImportError, OSError: Horovod for MXNet is missing, or its library cannot be loaded.
    """
    horovod = importlib.import_module("horovod.mxnet")
    return [kind for kind in KINDS if getattr(horovod, f"{kind}_built")()]


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


def is_peer_gone(error: BaseException) -> bool:
    """Return whether an error, perhaps an MXNetError, means that another process of the group was lost."""
    return isinstance(error, PeerGone) or any(part in str(error) for part in LOST_PEER)


def peer_addresses(error: BaseException) -> list[str]:
    """Return the addresses on other hosts of the peers that Gloo names in an error's text."""
    return sorted({address for address in _PEER_ADDRESS.findall(str(error)) if not address.startswith("127.")})


@contextmanager
def aborting_nccl() -> Iterator[None]:
    """Let Horovod abort NCCL once a peer is lost; enclose ``hvd.init``.

    Otherwise Horovod waits for an event of a collective that never ends, and destroys NCCL's communicator, which waits
    for the same. It reads the variable at every init. At the first init, it has no other effect: the rendezvous looks
    at it only after an earlier context was closed. At later ones, the variable stays as it is. (Read in Horovod 0.28.1,
    not run on a GPU: ``gloo/gloo_context.cc``, ``ops/nccl_operations.cc``, ``ops/gpu_operations.cc``,
    ``operations.cc``.)
    """
    if next(_inits) or NEVER_SET in os.environ:
        yield
        return
    os.environ[NEVER_SET] = "1"
    try:
        yield
    finally:
        del os.environ[NEVER_SET]


def choose_settings(gpus: bool, several_hosts: bool) -> None:
    """Choose Horovod's settings, unless the environment does; call before ``hvd.init``.

    HOROVOD_CYCLE_TIME is how often Horovod's thread looks for work: every millisecond by default. On CPUs that takes a
    twentieth of a core from the computation, which is worth it only if gradients go through Horovod. On GPUs the host
    has cores to spare, and the last gradients of each step wait half a cycle on average.

    By default Horovod adds up all groups of arrays that are ready in one cycle together. A number's place among all
    that is sent together decides in which order three or more ranks add it, so sums would depend on timing
    (``Controller::ComputeResponseList``, ``Controller::FuseResponses``).
    """
    os.environ.setdefault("HOROVOD_CYCLE_TIME", "0.2" if gpus else "1" if several_hosts else "10")
    os.environ.setdefault("HOROVOD_DISABLE_GROUP_FUSION", "1")


def groups(trainer: Any, arrays: list[Any]) -> list[list[Any]]:
    """Split arrays as Horovod's trainer splits them into groups; without the groups that would be empty.

    Checked with Horovod 0.28.1: ``DistributedTrainer._num_groups``, ``horovod.common.util.split_list``.
    """
    number = trainer._num_groups
    size, more = divmod(len(arrays), number)
    starts = [size * group + min(group, more) for group in range(number + 1)]
    return [arrays[start:end] for start, end in zip(starts, starts[1:]) if start < end]


def sum_not_average(trainer: Any) -> bool:
    """Let Horovod's trainer sum gradients on every build.

    It does so where it was built without NCCL, or with one before 2.10. With a newer one it averages, which would round
    what travels along (checked with Horovod 0.28.1: ``DistributedTrainer._average_in_framework``).

    Returns:
        Whether the gradients still have to be divided by the number of ranks.
    """
    averages = not trainer._average_in_framework
    trainer._postscale_factor = 1.0
    trainer._average_in_framework = True
    return averages
