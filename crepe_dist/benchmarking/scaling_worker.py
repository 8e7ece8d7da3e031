"""Worker process of ``crepe_dist.benchmarking.scaling``, which starts it. On a CPU it keeps to one core."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from crepe_dist import command
from crepe_dist.benchmarking.workers import serve
from crepe_dist.distributed.join import join
from crepe_dist.distributed.launch import detect


def main() -> None:
    flags = argparse.ArgumentParser()
    flags.add_argument("--number", type=int, help="number of the worker; default: the rank")
    flags.add_argument("--free", action="store_true", help="use any core, as a process that feeds a GPU must")
    flags.add_argument("address")
    given = flags.parse_args()
    launch = detect()
    number = launch.rank if given.number is None else given.number
    place = launch.local_rank if given.number is None else number
    if not given.free:
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[place % len(cores)]})

    with ExitStack() as stack:

        def work() -> dict[str, Callable[..., dict[str, Any]]]:
            world = stack.enter_context(join())
            from crepe_dist.benchmarking.scaling_training import Worker  # MXNet, whose number of threads join() sets

            worker = Worker(world, place)
            return {"build": worker.build, "train": worker.train, "allreduce": worker.allreduce}

        serve(given.address, number, work)


if __name__ == "__main__":
    command.run(main)
