"""Worker process of ``scaling.py``. It builds a network and trains it on request."""

import argparse
import json
import os
import socket
import time
from typing import Any

from crepe_dist import command_runner
from crepe_dist.distributed.init_process_group import init_process_group
from crepe_dist.distributed.launch import read_launcher_env


def main() -> None:
    flags = argparse.ArgumentParser()
    flags.add_argument("on", choices=("cpu", "gpu"))
    flags.add_argument("--number", type=int, help="number of the worker; default: the rank")
    flags.add_argument("address")
    options = flags.parse_args()
    number = read_launcher_env().rank if options.number is None else options.number
    if options.on == "cpu":  # Use one core. A process that uses a GPU may run on any core.
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[number % len(cores)]})
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(options.address)
        with connection.makefile("rw", encoding="utf-8") as stream, init_process_group() as group:
            print(json.dumps({"number": number, "pid": os.getpid()}), file=stream, flush=True)
            worker = Worker(group, number)
            for line in stream:  # ends when the other side closes the socket
                request = json.loads(line)
                answer = getattr(worker, request.pop("name"))(**request)
                print(json.dumps(answer), file=stream, flush=True)


class Worker:
    """Handlers of the requests. Every request is sent to all ranks of a job.

    Args:
        group: process group of the job; an independent worker has a group of size 1.
        slot: index of the GPU that an independent worker uses.
    """

    def __init__(self, group: Any, slot: int) -> None:
        self._group = group
        self._slot = slot

    def build(self, on: str, precision: Any = "auto", **shape: Any) -> dict[str, Any]:
        """Build the network on the CPU, or on a GPU that no other worker uses."""
        from workloads import Training  # imported after init_process_group, which sets the number of MXNet's threads

        from crepe_dist.distributed.device import Device, check_mxnet_gpu, select_device
        from crepe_dist.networks.paper.config import PaperConfig

        self._shape = PaperConfig(**shape)
        # ``select_device`` would select the same GPU for all independent workers.
        has_slot = on == "gpu" and self._group.size == 1
        device = Device("gpu", self._slot) if has_slot else select_device(on, check_mxnet_gpu, self._group)
        self._training = Training(self._shape, self._group, device, precision)
        return {}

    def train(self, batch: int, steps: int) -> dict[str, Any]:
        """Train ``steps`` steps on one random batch of ``batch`` documents.

        Return a dictionary with the ``seconds`` that the steps took and the ``rate`` of this worker in documents/s.
        """
        from workloads import random_batch

        documents = random_batch(self._shape, batch, self._group.size, seed=self._group.rank)
        start = time.perf_counter()
        self._training.repeat(documents, steps)
        seconds = time.perf_counter() - start
        return {"seconds": seconds, "rate": batch * steps / seconds}


if __name__ == "__main__":
    command_runner.run(main)
