"""Whether every rank still has the same parameters: a difference would go on unseen, and spoil what rank 0 saves."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

from crepe_dist.distributed.world import World
from crepe_dist.errors import ExitCode, UserError
from crepe_dist.model import parameters


def check_replicas(network: Any, world: World) -> None:
    """Compares a checksum of the parameters over the ranks; every rank calls it.

    Raises:
        UserError: on every rank, naming those that differ from the most (of two, the second).
    """
    if world.size == 1:
        return
    digest = parameters.digest(network)
    table = np.zeros(world.size, dtype=np.int64)
    table[world.rank] = digest
    digests = world.sum(table, "digest").tolist()
    usual, _ = Counter(digests).most_common(1)[0]
    odd = [rank for rank, each in enumerate(digests) if each != usual]
    if odd:
        raise UserError(
            f"the parameters of rank {', '.join(map(str, odd))} differ from those of the other ranks",
            "a fault of memory, of the network or of a device, or of this program",
            "run the same command again, which goes on from the newest saved state, where they were equal; "
            "leave the host out if it happens again",
            on_all_ranks=True,
            code=ExitCode.FAILURE,
        )
