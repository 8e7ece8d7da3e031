"""Worker process of ``hosts.py``: a rank that trains on a data set, and counts what a step costs.

    python hosts_worker.py DATA DOCUMENTS STEPS

A launcher's environment gives the rank. Every step has DOCUMENTS documents per rank. After WARM_UP steps, the worker
measures STEPS steps, and prints a line of JSON with the means per step of ``COUNTERS``.
"""

import json
import resource
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

from crepe_dist import command_runner
from crepe_dist.data.batch_schedule import equal_batches
from crepe_dist.data.dataset import open_dataset
from crepe_dist.data.loader import DataLoader, epoch_order, length_balanced_order, max_shard_size, with_next
from crepe_dist.distributed.init_process_group import init_process_group
from crepe_dist.distributed.messages import Bytes
from crepe_dist.settings.config import parse
from crepe_dist.training.model_setup import build_engine

WARM_UP = 8  # Steps before the measurement. The first steps allocate memory, and choose the fixed-point scales.
# Columns of the table. TIMES are milliseconds: of the whole step, of the exchange between hosts, and of the collectives
# in the exchange. The other columns are page faults, voluntary context switches, and megabytes that the rank sends.
TIMES = ("wall", "cpu", "exchange_wall", "exchange_cpu", "collective_wall", "collective_cpu")
COUNTERS = (*TIMES, "faults", "waits", "MB")


class Stopwatch:
    """Sum of the wall time and the CPU time of calls, in milliseconds."""

    def __init__(self) -> None:
        self.wall = self.cpu = 0.0

    def wrap(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function that calls ``function`` and adds the time of the call."""

        def timed(*arguments: Any, **keywords: Any) -> Any:
            wall, cpu = time.perf_counter(), time.process_time()
            try:
                return function(*arguments, **keywords)
            finally:
                self.wall += 1000 * (time.perf_counter() - wall)
                self.cpu += 1000 * (time.process_time() - cpu)

        return timed


def main() -> None:
    folder, documents, steps = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    with init_process_group() as group:
        data = open_dataset(folder)
        config = parse(["--data", folder, "--device", "cpu", "--epochs", "1"])
        engine = build_engine(config, data, group)
        split, batch_size = data.splits["train"], documents * group.size
        optimizer: Any = engine.create_optimizer(
            group, config.optimizer, max_shard_size(batch_size, group.size, engine.reduction_group)
        )
        exchange, collectives, sent = Stopwatch(), Stopwatch(), 0.0
        if reducer := optimizer._inter_host:
            for name in ("exchange_grads", "exchange_rows"):
                setattr(reducer, name, exchange.wrap(getattr(reducer, name)))
            send = group.exchange

            def count_and_send(messages: Mapping[int, Bytes], name: str) -> tuple[Bytes, list[int]]:
                nonlocal sent
                sent += sum(message.size for message in messages.values()) / 1e6
                return send(messages, name)

            group.exchange = collectives.wrap(count_and_send)  # type: ignore[method-assign]
        start: list[float] = []

        def counters() -> list[float]:
            usage = resource.getrusage(resource.RUSAGE_SELF)
            times = [exchange.wall, exchange.cpu, collectives.wall, collectives.cpu]
            cpu = 1000 * (usage.ru_utime + usage.ru_stime)
            return [1000 * time.perf_counter(), cpu, *times, usage.ru_minflt, usage.ru_nvcsw, sent]

        step = 0
        while True:
            order = length_balanced_order(
                epoch_order(len(split), 0, step)[: len(split) // batch_size * batch_size], split.lengths(), batch_size
            )
            ranges = equal_batches(len(order), batch_size)
            loader = DataLoader(split, order, ranges, group.rank, group.size, engine.reduction_group)
            numbered = (batch.for_step(number, 0) for number, batch in enumerate(loader, step + 1))
            for batch, next_batch in with_next(numbered):
                if step == WARM_UP:
                    start = counters()
                if step == WARM_UP + steps:
                    means = [(after - before) / steps for before, after in zip(start, counters())]
                    print(json.dumps({"rank": group.rank, **dict(zip(COUNTERS, means))}), flush=True)
                    return
                step += 1
                while optimizer.all_reduce(engine.forward_backward(batch, next_batch), batch).needs_recompute:
                    pass
                optimizer.step(batch.global_batch_size, config.optimizer.learning_rate)


if __name__ == "__main__":
    command_runner.run(main)
