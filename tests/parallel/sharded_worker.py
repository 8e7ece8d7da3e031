"""Worker of ``test_sharded_embedding.py``: ``python sharded_worker.py NETWORK HOSTS``.

NETWORK is the name of a network configuration in the test module. HOSTS is JSON with the ranks of each host. If HOSTS
is empty, no rank can create shared memory.
"""

import json
import sys

from crepe_dist.distributed.init_process_group import init_process_group
from crepe_dist.parallel import host_shared_memory
from tests.parallel import test_sharded_embedding

if __name__ == "__main__":
    with init_process_group() as group:
        if hosts := json.loads(sys.argv[2]):
            group.hosts = hosts
        else:
            host_shared_memory._create_segment = lambda size: None
        test_sharded_embedding.train_together(group, getattr(test_sharded_embedding, sys.argv[1]))
