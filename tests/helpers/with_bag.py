"""Training in a package with one more line in its registry; a fault may break it, as in tests/chaos."""

import sys

from crepe_dist.network_registry import NETWORKS

NETWORKS["bag"] = "tests.helpers.bag"

if __name__ == "__main__":
    from crepe_dist import command_runner
    from tests.chaos import worker

    sys.argv[0] = "crepe_dist.train"
    command_runner.run(worker.main)
