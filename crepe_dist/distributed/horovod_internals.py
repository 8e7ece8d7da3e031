"""Horovod's builds, and its undocumented behaviour that the package relies on.

Each was checked with Horovod 0.28.1; check them all before another version is allowed.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
import sys

from crepe_dist.errors import PeerGone

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
)
_PEER_ADDRESS = re.compile(r"\[(\d+\.\d+\.\d+\.\d+)\]:\d+")


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


def is_peer_gone(error: BaseException) -> bool:
    """Return whether an error, perhaps an MXNetError, means that another process of the group was lost."""
    return isinstance(error, PeerGone) or any(part in str(error) for part in LOST_PEER)


def peer_addresses(error: BaseException) -> list[str]:
    """Return the addresses on other hosts of the peers that Gloo names in an error's text."""
    return sorted({address for address in _PEER_ADDRESS.findall(str(error)) if not address.startswith("127.")})
