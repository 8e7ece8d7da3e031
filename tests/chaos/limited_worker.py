"""``tests.chaos.worker`` that may allocate 200 MB more than its imports need, and starts with a large batch."""

import resource

import crepe_dist.training.train_loop  # noqa: F401  the limit does not count what the import allocates
from crepe_dist import command_runner
from crepe_dist.data import batch_schedule
from tests.chaos import worker

if __name__ == "__main__":
    with open("/proc/self/statm", encoding="ascii") as stream:
        used = int(stream.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (200 << 20), resource.RLIM_INFINITY))
    batch_schedule.REFERENCE_BATCH_SIZE = 1 << 14
    command_runner.run(worker.main)
