"""Program of ``test_shared_memory_optimizer.py``: the rank of the argument is killed while the others wait in a sum.

The ranks stand for two hosts of two processes. No process ends before all others have said why they end.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import numpy as np

from crepe_dist import command_runner
from crepe_dist.distributed.init_process_group import init_process_group
from crepe_dist.optim.fixed_point import FixedPointScales, Parameter
from crepe_dist.optim.optimizers import OptimizerSpec
from crepe_dist.parallel.shared_memory_optimizer import SharedMemoryOptimizer
from crepe_dist.settings.options import OptimizerOptions


def train() -> None:
    with init_process_group() as world:
        world.hosts = [[0, 1], [2, 3]]
        quanta = FixedPointScales({"a": Parameter(np.zeros(3, np.float32))})
        exchange = SharedMemoryOptimizer(world, OptimizerSpec(OptimizerOptions(name="sgd")), quanta)
        exchange._all_reduce(0.0, ())
        if world.rank == int(sys.argv[1]):
            os.kill(os.getpid(), signal.SIGKILL)
        exchange._all_reduce(0.0, ())


if __name__ == "__main__":
    rank, size = os.environ["HOROVOD_RANK"], int(os.environ["HOROVOD_SIZE"])
    if (child := os.fork()) == 0:
        command_runner.run(train)
    _, status = os.waitpid(child, 0)
    Path(f"ended {rank}").touch()
    due = time.monotonic() + 60
    while time.monotonic() < due and len(list(Path().glob("ended *"))) < size:
        time.sleep(0.05)
    print("rank", rank, "ended with", os.waitstatus_to_exitcode(status))
