"""``crepe supervise`` for any program, with short time limits: ``python supervise.py FLAGS PROGRAM ARGUMENTS``.

``LIMIT`` in the environment is the time limit of the watchdogs in seconds.
"""

import os
import sys

from crepe_dist import command_runner
from crepe_dist.elastic import worker_group
from crepe_dist.train import Supervise

if __name__ == "__main__":
    worker_group.PEER_EXIT_SECONDS = worker_group.WATCHDOG_MARGIN_SECONDS = 0.5
    values, worker = Supervise.parser().parse_known_args(sys.argv[1:])
    command_runner.run(Supervise(**vars(values), worker=worker, limit=float(os.environ.get("LIMIT", "2"))).run)
