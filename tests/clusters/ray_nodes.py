"""Program that starts a Ray cluster of two nodes and prints its address. Each line of standard input removes a node."""

import sys

from ray.cluster_utils import Cluster

node = {"num_cpus": 1, "object_store_memory": 80 << 20}
cluster = Cluster(initialize_head=True, head_node_args={"include_dashboard": False, **node})
second_node = cluster.add_node(**node)
print(">", cluster.address, flush=True)
for _ in sys.stdin:
    cluster.remove_node(second_node, allow_graceful=False)
    print("> done", flush=True)
cluster.shutdown()
