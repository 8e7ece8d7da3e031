"""Measure what training on several hosts costs in each step.

    python hosts.py DATA [--hosts 1 2 4 8] [--documents 64 512] [--rate 10gbit] [--delay 1ms] [--steps 40]

The hosts are network namespaces of this machine, which share its cores in turn. Each runs one process with one thread.
The program needs root, iproute2 and util-linux. With more hosts than cores, hosts take turns on a core, so the wall
times are too long.
From 32 hosts on, raise net.ipv4.neigh.default.gc_thresh3 above the square of the number of hosts.
"""

import argparse
import json
import os
import secrets
import statistics
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

from hosts_worker import COUNTERS

from crepe_dist import hardware

WORKER = Path(__file__).with_name("hosts_worker.py")
NETWORK, PORT = "10.207.32", 29578
MTU = 9000
# A namespace lives until its standard input is closed.
SPACE = "ip link set lo up; echo up; cat >/dev/null; exit"


def main() -> None:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("data", help="prepared data set")
    flags.add_argument("--hosts", type=int, nargs="+", default=[1, 2, 4, 8])
    flags.add_argument("--documents", type=int, nargs="+", default=[64, 512], help="documents per host and step")
    flags.add_argument("--rate", help="limit of each host's link, in tc's notation")
    flags.add_argument("--delay", help="delay of each packet, in tc's notation; needs netem in the kernel")
    flags.add_argument("--steps", type=int, default=40, help="measured steps")
    options = flags.parse_args()
    print("hosts documents " + " ".join(f"{name:>15}" for name in COUNTERS))
    for documents in options.documents:
        for size in options.hosts:
            with Cluster(size, options.rate, options.delay) as cluster:
                ranks = cluster.run([options.data, str(documents), str(options.steps)])
            means = [statistics.mean(rank[name] for rank in ranks) for name in COUNTERS]
            print(f"{size:5} {documents:9} " + " ".join(f"{mean:15.2f}" for mean in means), flush=True)


class Cluster:
    """Network namespaces that are connected by a bridge."""

    def __init__(self, size: int, rate: str | None, delay: str | None) -> None:
        self._open = ExitStack()
        try:
            switch = self._space()
            self._in(switch, "ip", "link", "add", "switch", "type", "bridge")
            self._in(switch, "ip", "link", "set", "switch", "mtu", str(MTU), "up")
            self._hosts = [self._space() for _ in range(size)]
            for number, host in enumerate(self._hosts):
                port = f"port{number}"
                self._in(switch, "ip", "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", str(host))
                self._in(switch, "ip", "link", "set", port, "mtu", str(MTU), "master", "switch", "up")
                self._in(host, "ip", "addr", "add", f"{NETWORK}.{number + 1}/24", "dev", "eth0")
                self._in(host, "ip", "link", "set", "eth0", "mtu", str(MTU), "up")
                qdisc = ["tc", "qdisc", "add", "dev", "eth0"]
                if rate:
                    limits = ["tbf", "rate", rate, "burst", "256kb", "latency", "50ms"]
                    self._in(host, *qdisc, "root", "handle", "1:", *limits)
                if delay:
                    parent = ["parent", "1:"] if rate else ["root"]
                    self._in(host, *qdisc, *parent, "netem", "delay", delay, "limit", "100000")
        except BaseException:
            self._open.close()
            raise

    def run(self, arguments: list[str]) -> list[dict[str, float]]:
        """Run the worker on each host, and return what the ranks print."""
        cores, secret = hardware.num_cores(), secrets.token_hex(16)
        processes = []
        for rank, host in enumerate(self._hosts):
            ranks = {"RANK": rank, "WORLD_SIZE": len(self._hosts), "LOCAL_WORLD_SIZE": 1, "OMP_NUM_THREADS": 1}
            address = {"MASTER_ADDR": f"{NETWORK}.1", "MASTER_PORT": PORT, "CREPE_DIST_SECRET": secret}
            environment = {**os.environ, **{name: str(value) for name, value in {**ranks, **address}.items()}}
            worker = ["taskset", "-c", str(rank % cores), sys.executable, str(WORKER), *arguments]
            command = [*_inside(host), "sh", "-c", 'hostname "$0"; exec "$@"', f"host{rank}", *worker]
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, env=environment)
            processes.append(process)
        outputs = [process.communicate()[0] for process in processes]
        if any(process.returncode for process in processes):
            raise SystemExit("a worker failed")
        return [json.loads(output.splitlines()[-1]) for output in outputs]

    def _space(self) -> int:
        """Create a namespace, and return its process."""
        command = ["unshare", "--net", "--uts", "--mount", "--kill-child", "--fork", "sh", "-c", SPACE]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._open.callback(process.wait)
        assert process.stdin
        assert process.stdout
        self._open.callback(process.stdin.close)
        assert process.stdout.readline() == "up\n"
        return int(Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()[0])

    def _in(self, space: int, *command: str) -> str:
        return subprocess.run([*_inside(space), *command], check=True, stdout=subprocess.PIPE, text=True).stdout

    def __enter__(self) -> "Cluster":
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()


def _inside(space: int) -> list[str]:
    return ["nsenter", "--target", str(space), "--net", "--uts", "--mount", "--wd=."]


if __name__ == "__main__":
    main()
