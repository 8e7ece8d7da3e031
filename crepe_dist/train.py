"""Trains: `python -m crepe_dist.train`, or `horovodrun -np N python -m crepe_dist.train`."""

from __future__ import annotations

import sys

from crepe_dist import command
from crepe_dist.distributed.control import Control
from crepe_dist.distributed.world import join
from crepe_dist.settings.config import parse


def main() -> None:
    with Control() as control, join() as world:
        carried = None
        while True:
            config = world.agree("settings", lambda: parse(sys.argv[1:]), same=lambda config: config.to_dict())
            if config.dry_run:
                from crepe_dist.training.dry_run import dry_run

                return dry_run(config, world, control)
            from crepe_dist.training.fit import Result, train

            outcome = train(config, world, control, carried)
            if isinstance(outcome, Result):
                return
            carried = outcome  # the group has changed; what is in memory goes on in the new one


if __name__ == "__main__":
    command.run(main, "interrupted; the same command goes on from the last saved state")
