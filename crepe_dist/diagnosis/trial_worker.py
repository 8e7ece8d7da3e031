"""Process of a trial, started by ``diagnosis.trial``: ``python -m crepe_dist.diagnosis.trial_worker cpu|gpu FOLDER``.

It writes the result of each stage to ``rank_<rank>.json`` in the folder at once, in case a later stage does not end.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from crepe_dist import command
from crepe_dist.distributed.join import join
from crepe_dist.files import write_json

if TYPE_CHECKING:
    from crepe_dist.distributed.world import World

NUMBERS = 1 << 18  # exceeds the buffer of a socket


def main() -> None:
    device, folder = sys.argv[1:]
    found: dict[str, Any] = {}
    with join() as world:
        from crepe_dist.diagnosis.trial_step import step  # MXNet; join sets the number of its threads

        path = Path(folder) / f"rank_{world.rank}.json"
        for stage, result in (("sum", sum_of_known), ("step", step)):
            found[stage] = result(world, device)
            write_json(path, found)


def sum_of_known(world: World, device: str) -> dict[str, int]:
    """All-reduce known numbers, scaled by rank + 1; they are whole, so that float32 adds them without rounding."""
    numbers = (np.arange(NUMBERS) % 1009).astype(np.float32)
    total = world.sum((world.rank + 1) * numbers, "doctor.sum")
    return {"numbers": NUMBERS, "wrong": int(np.count_nonzero(total != numbers * (world.size * (world.size + 1) // 2)))}


if __name__ == "__main__":
    command.run(main)
