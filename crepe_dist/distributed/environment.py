"""The environment of a rank: an allow-list of the driver's environment, and Horovod's view of the group."""

from __future__ import annotations

from collections.abc import Mapping

from crepe_dist.distributed.horovod_internals import NEVER_SET
from crepe_dist.distributed.hosts import Slot

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


def allowed(environment: Mapping[str, str]) -> dict[str, str]:
    """Select the variables that processes on other hosts get: those that do not describe this machine."""
    return {
        name: value
        for name, value in environment.items()
        if (name in NAMES or name.startswith(PREFIXES)) and name != NEVER_SET
    }


def group_variables(slot: Slot, store: tuple[str, int], interface: str, others: Mapping[str, str]) -> dict[str, str]:
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
    }
    return {name: str(value) for name, value in variables.items()}
