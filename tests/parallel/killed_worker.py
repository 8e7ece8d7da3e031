"""Worker of ``test_shared_memory_optimizer.py``: one rank is killed while the others wait in an all-reduce.

The argument is the rank that is killed. The four ranks simulate two hosts of two processes. Each process waits until
all processes have printed why they end, because the launcher would kill the others when the first process ends.
"""

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
    with init_process_group() as group:
        group.hosts = [[0, 1], [2, 3]]
        scales = FixedPointScales({"a": Parameter(np.zeros(3, np.float32))})
        optimizer = SharedMemoryOptimizer(group, OptimizerSpec(OptimizerOptions(name="sgd")), scales)
        optimizer._all_reduce(0.0, ())
        if group.rank == int(sys.argv[1]):
            os.kill(os.getpid(), signal.SIGKILL)
        optimizer._all_reduce(0.0, ())


if __name__ == "__main__":
    rank, size = os.environ["HOROVOD_RANK"], int(os.environ["HOROVOD_SIZE"])
    if (child := os.fork()) == 0:
        command_runner.run(train)
    _, status = os.waitpid(child, 0)
    Path(f"ended {rank}").touch()
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and len(list(Path().glob("ended *"))) < size:
        time.sleep(0.05)
    print("rank", rank, "ended with", os.waitstatus_to_exitcode(status))
