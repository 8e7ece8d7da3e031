"""Check for replica divergence: if it happens, rank 0's checkpoints no longer stand for all ranks."""

from __future__ import annotations

import hashlib
from collections import Counter

import numpy as np

from crepe_dist.distributed.world import World
from crepe_dist.errors import ExitCode, UserError
from crepe_dist.model.parameters import Arrays


def digest(arrays: Arrays) -> int:
    """Return a checksum of all parameters, below 2^48, for comparing replicas bit by bit."""
    sums = []
    for array in arrays.values():
        words = array.reshape(-1).view(np.uint32)
        sums += [np.add.reduce(words, dtype=np.uint64), np.uint64(np.bitwise_xor.reduce(words))]
    return int.from_bytes(hashlib.sha256(np.array(sums, np.uint64).tobytes()).digest()[:6], "little")


def check_replicas(arrays: Arrays, ranks: World) -> None:
    """Compare a checksum of the parameters over the ranks; every rank calls it.

    Raises:
        UserError: on every rank, if parameters differ; it names the ranks outside the majority (of two, rank 1).
    """
    if ranks.size == 1:
        return
    table = np.zeros(ranks.size, dtype=np.int64)
    table[ranks.rank] = digest(arrays)
    digests = ranks.sum(table, "digest").tolist()
    usual, _ = Counter(digests).most_common(1)[0]
    odd = [rank for rank, digest in enumerate(digests) if digest != usual]
    if odd:
        raise UserError(
            f"the parameters of rank {', '.join(map(str, odd))} differ from those of the other ranks",
            "a hardware fault (memory, network or device), or a bug in crepe_dist",
            "run the same command again to resume from the newest saved state, where they were equal; if it happens "
            "again, leave that host out",
            on_all_ranks=True,
            code=ExitCode.FAILURE,
        )
