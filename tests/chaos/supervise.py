"""``crepe supervise`` of workers with planned faults, which restarts them at once however soon they end."""

import sys

from crepe_dist import command_runner
from crepe_dist.elastic import driver
from crepe_dist.train import Supervise

if __name__ == "__main__":
    driver.SHORT_GROUP_SECONDS = 0.0
    supervisor = Supervise.parsed(sys.argv[1:])
    supervisor.worker = ["-m", "tests.chaos.worker", *supervisor.worker[2:]]
    command_runner.run(supervisor.run)
