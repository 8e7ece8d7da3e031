"""Program of ``test_rendezvous.py``: it joins the process group, prints its place, and ends at the end of its input."""

import json
import os
import sys

from crepe_dist import command_runner
from crepe_dist.distributed.init_process_group import init_process_group
from crepe_dist.distributed.tcp_group import TcpProcessGroup


def main() -> None:
    with init_process_group() as world:
        assert isinstance(world, TcpProcessGroup)
        place = [world.rank, world.size, world.local_rank, world.local_size]
        hosts = [peer.getpeername()[0] for _, peer in sorted(world._peers.items())]
        print(json.dumps([place, hosts, os.environ["OMP_NUM_THREADS"]]), flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    command_runner.run(main)
