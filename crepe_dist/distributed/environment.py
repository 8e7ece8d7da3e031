"""The environment of a rank: an allow-list of the driver's environment, and Horovod's view of the group."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence

from crepe_dist.distributed.horovod_internals import NEVER_SET
from crepe_dist.distributed.launch import LAUNCHERS

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


def allowed() -> dict[str, str]:
    """Return the variables that processes on other hosts get: those that do not describe this machine."""
    return {
        name: value
        for name, value in os.environ.items()
        if (name in NAMES or name.startswith(PREFIXES)) and name != NEVER_SET
    }


def without_place() -> dict[str, str]:
    """Return the variables that a process inherits which is started here: not this one's place among others."""
    place = {NEVER_SET, *(name for _, *names in LAUNCHERS for name in names)}
    return {name: value for name, value in os.environ.items() if name not in place}


def group_variables(
    hosts: Sequence[str], rank: int, store: tuple[str, int], interface: str, others: Mapping[str, str]
) -> dict[str, str]:
    """Return the variables from which Horovod and NCCL learn the place of a process in its group.

    ``horovodrun`` sets them, but no documentation lists them (checked with Horovod 0.28.1:
    ``horovod/runner/gloo_run.py``).

    Args:
        hosts: name of the host of each rank.
        store: address and port of the store in which the processes find each other.
        others: the process's other variables; those of NCCL take precedence.
    """
    host, processes = hosts[rank], Counter(hosts)
    local_rank = hosts[:rank].count(host)
    like = [name for name, count in processes.items() if count > local_rank]  # hosts with a process of this local rank
    variables = {
        "HOROVOD_HOSTNAME": host,
        "HOROVOD_RANK": rank,
        "HOROVOD_SIZE": len(hosts),
        "HOROVOD_LOCAL_RANK": local_rank,
        "HOROVOD_LOCAL_SIZE": processes[host],
        "HOROVOD_CROSS_RANK": like.index(host),
        "HOROVOD_CROSS_SIZE": len(like),
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
