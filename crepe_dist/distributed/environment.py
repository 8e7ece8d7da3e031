"""The environment of a worker: an allow-list of the supervisor's environment, and Horovod's view of the group."""

from __future__ import annotations

from collections.abc import Mapping

from crepe_dist.distributed.control import DESCRIPTOR, GENERATION
from crepe_dist.distributed.horovod_internals import NEVER_SET
from crepe_dist.distributed.hosts import Slot

# Variables of the machine; a remote host has its own.
MACHINE = (
    "PATH",
    "HOME",
    "USER",
    "LOGNAME",
    "SHELL",
    "TMPDIR",
    "VIRTUAL_ENV",
    "LD_LIBRARY_PATH",
    "XDG_CACHE_HOME",
    "XDG_RUNTIME_DIR",
)
NAMES = ("LANG", "LANGUAGE", "TZ", "TERM", "NO_COLOR")
PREFIXES = (
    "LC_",
    "PYTHON",
    "OMP_",
    "KMP_",
    "GOMP_",
    "MXNET_",
    "DNNL_",
    "OPENBLAS_",
    "NPY_",
    "HOROVOD_",
    "NCCL_",
    "CUDA_",
    "NVIDIA_",
    "CREPE_DIST_",
    "COVERAGE_",
    "COV_CORE_",
    "SSL_CERT_",
)
NCCL_INTERFACE = "NCCL_SOCKET_IFNAME"
# Only the supervisor itself sets the second one.
NEVER = (NEVER_SET, DESCRIPTOR)


def allowed(environment: Mapping[str, str], local: bool = True) -> dict[str, str]:
    """Select the variables that a worker gets; ``local`` means a worker on the supervisor's machine."""
    return {
        name: value
        for name, value in environment.items()
        if ((local and name in MACHINE) or name in NAMES or name.startswith(PREFIXES)) and name not in NEVER
    }


def group_variables(
    slot: Slot, store: tuple[str, int], interface: str, others: Mapping[str, str], generation: int = 0
) -> dict[str, str]:
    """Return the variables from which Horovod and NCCL learn the place of a process in its group.

    ``horovodrun`` sets them, but no documentation lists them (checked with Horovod 0.28.1:
    ``horovod/runner/gloo_run.py``).

    Args:
        others: the process's other variables; those of NCCL take precedence.
    """
    variables = {
        "HOROVOD_HOSTNAME": slot.host,
        "HOROVOD_RANK": slot.rank,
        "HOROVOD_SIZE": slot.size,
        "HOROVOD_LOCAL_RANK": slot.local_rank,
        "HOROVOD_LOCAL_SIZE": slot.local_size,
        "HOROVOD_CROSS_RANK": slot.cross_rank,
        "HOROVOD_CROSS_SIZE": slot.cross_size,
        "HOROVOD_GLOO_RENDEZVOUS_ADDR": store[0],
        "HOROVOD_GLOO_RENDEZVOUS_PORT": store[1],
        "HOROVOD_CONTROLLER": "gloo",
        "HOROVOD_CPU_OPERATIONS": "gloo",
        "HOROVOD_GLOO_IFACE": interface,
        # Otherwise NCCL chooses an interface by itself, perhaps one that is not shared by all hosts. "=": NCCL takes a
        # bare name for the start of one.
        NCCL_INTERFACE: others.get(NCCL_INTERFACE) or f"={interface}",
        GENERATION: generation,
    }
    return {name: str(value) for name, value in variables.items()}
