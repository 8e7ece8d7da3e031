"""Program of ``test_sharded_embedding.py``: trains a network of its constants on the hosts of the JSON argument.

``python sharded_worker.py NETWORK HOSTS``; without hosts, no rank can create shared memory.
"""

from __future__ import annotations

import json
import sys

from crepe_dist.distributed.init_process_group import init_process_group
from crepe_dist.parallel import host_shared_memory
from tests.parallel import test_sharded_embedding

if __name__ == "__main__":
    with init_process_group() as world:
        if hosts := json.loads(sys.argv[2]):
            world.hosts = hosts
        else:
            host_shared_memory._create_segment = lambda size: None
        test_sharded_embedding.train_together(world, getattr(test_sharded_embedding, sys.argv[1]))
