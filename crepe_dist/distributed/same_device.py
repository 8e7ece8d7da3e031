"""Choice of one kind of device for all ranks, before anything is put on it."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from typing import Any

from crepe_dist import invocation, wording
from crepe_dist.distributed.device import pick
from crepe_dist.distributed.world import World
from crepe_dist.errors import UserError

SHOWN_RANKS = 8
NAMES = {"gpu": "on a GPU", "cpu": "on the CPU"}


def pick_on_all(device: str, world: World) -> Any:
    """Choose this rank's device as ``device.pick`` does; every rank calls it, before it builds a network.

    Raises:
        UserError: on every rank, if one has no such device, some have a GPU and others none, or Horovod cannot handle
            arrays on it.
    """
    picked = pick(device, world)
    found = world.gather([socket.gethostname(), picked.device_type], "device types")
    if len({kind for _, kind in found}) > 1:
        raise UserError(
            f"some processes have a GPU and others have none: {_shown(found)}",
            "gradients are summed either on GPUs or on CPUs",
            f"run {invocation.typed('doctor')} on the hosts without a GPU, leave them out, or use --device cpu",
            on_all_ranks=True,
        )
    world.check_device(picked)
    return picked


def _shown(found: Sequence[Sequence[str]]) -> str:
    """Describe which ranks have what; ``found`` is host and kind of device of each rank."""
    parts = []
    for host, kind in dict.fromkeys(map(tuple, found)):
        ranks = [str(rank) for rank, each in enumerate(found) if tuple(each) == (host, kind)]
        shown = wording.first(ranks, SHOWN_RANKS)
        more = [f"{len(ranks) - len(shown)} more"] * (len(shown) < len(ranks))
        parts.append(f"rank {wording.listed([*shown, *more])} (host {host}) {NAMES[kind]}")
    return "; ".join(parts)
