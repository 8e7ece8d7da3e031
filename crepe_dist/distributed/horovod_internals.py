"""Undocumented behaviour of Horovod that the package relies on, one function or constant per trick.

Each was checked with Horovod 0.28.1; check them all before another version is allowed.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence

from crepe_dist.distributed.hosts import Slot

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

# If it is set, Horovod uses another rendezvous protocol than ``store.py``. Checked with Horovod 0.28.1.
NEVER_SET = "HOROVOD_ELASTIC"


def is_lost_peer(text: str) -> bool:
    """Return whether the text of an MXNetError means that another process is gone."""
    return any(each in text for each in LOST_PEER)


def peer_addresses(text: str) -> list[str]:
    """Return the addresses of the peers that Gloo names in an error's text (checked with Horovod 0.28.1)."""
    return _PEER_ADDRESS.findall(text)


def place_variables(slot: Slot, rendezvous: tuple[str, int], interface: str) -> dict[str, str]:
    """Return the variables from which ``hvd.init`` learns the place of a process.

    ``horovodrun`` sets them, but no documentation lists them (checked with Horovod 0.28.1:
    ``horovod/runner/gloo_run.py``).

    Args:
        rendezvous: IPv4 address and port of the store.
        interface: network interface that the process listens on.
    """
    variables = {
        "HOROVOD_HOSTNAME": slot.host,
        "HOROVOD_RANK": slot.rank,
        "HOROVOD_SIZE": slot.size,
        "HOROVOD_LOCAL_RANK": slot.local_rank,
        "HOROVOD_LOCAL_SIZE": slot.local_size,
        "HOROVOD_CROSS_RANK": slot.cross_rank,
        "HOROVOD_CROSS_SIZE": slot.cross_size,
        "HOROVOD_GLOO_RENDEZVOUS_ADDR": rendezvous[0],
        "HOROVOD_GLOO_RENDEZVOUS_PORT": rendezvous[1],
        "HOROVOD_CONTROLLER": "gloo",
        "HOROVOD_CPU_OPERATIONS": "gloo",
        "HOROVOD_GLOO_IFACE": interface,
    }
    return {name: str(value) for name, value in variables.items()}


def rendezvous_scopes(slots: Sequence[Slot]) -> dict[str, int]:
    """Return the rendezvous scopes in which Horovod's contexts meet, with the number of processes in each.

    Checked with Horovod 0.28.1: ``horovod/common/gloo/gloo_context.cc``.
    """
    result = {"global": len(slots)}
    for slot in slots:
        result[f"local_{slot.host}"] = slot.local_size
        result[f"cross_{slot.local_rank}"] = slot.cross_size
    return result


def allow_timeline() -> bool:
    """Let ``hvd.start_timeline`` work later; call before ``hvd.init``.

    Without this value it does nothing (checked with Horovod 0.28.1: ``HOROVOD_TIMELINE=DYNAMIC``).

    Returns:
        False if the launcher has started a timeline, which continues instead.
    """
    return os.environ.setdefault("HOROVOD_TIMELINE", "DYNAMIC") == "DYNAMIC"


def spare_the_cores() -> None:
    """Make Horovod's thread poll every 10 ms unless HOROVOD_CYCLE_TIME is set; call before ``hvd.init``.

    By default it polls every millisecond, which takes a tenth of a core (checked with Horovod 0.28.1:
    ``HOROVOD_CYCLE_TIME``).
    """
    os.environ.setdefault("HOROVOD_CYCLE_TIME", "10")
