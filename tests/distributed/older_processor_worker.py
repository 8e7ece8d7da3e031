"""Run ``crepe_dist.train``. Rank 1 simulates an older processor than the other ranks have."""

import os

from crepe_dist import command_runner, train
from crepe_dist.native import library

if __name__ == "__main__":
    if os.environ["HOROVOD_RANK"] == "1":
        library.processor_flags = lambda: library.BUILDS["avx2"]
    command_runner.run(train.main)
