"""One process of a trial: `python -m crepe_dist.diagnosis.trial_worker cpu|gpu FOLDER`, by `diagnosis.trial` only.

Writes what came of each stage into ``rank_<rank>.json`` of the folder, so that what went well is known if a later one
does not end.
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

NUMBERS = 1 << 18  # more than fit into one buffer of a socket


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
    """An all-reduce to which rank r gives r + 1 times known numbers: whole ones that float32 adds without rounding."""
    numbers = (np.arange(NUMBERS) % 1009).astype(np.float32)
    got = world.sum((world.rank + 1) * numbers, "doctor.sum")
    return {"numbers": NUMBERS, "wrong": int(np.count_nonzero(got != numbers * (world.size * (world.size + 1) // 2)))}


if __name__ == "__main__":
    command.run(main)
