#!/usr/bin/env python3
"""Measure how much batching helps the service: throughput and latency by number of clients, one text per request.

    uv run benchmarks/serving.py
    uv run benchmarks/serving.py --clients 1 8 32 --filters 256 --units 1024 --feature-len 1014

Two services with the same random network, one of them without batching, answer in turns on loopback. The clients are
coroutines of one process on the same cores. The script prints a Markdown table with one row per number of clients. The
figures are medians over the rounds. The CPU time per request depends least on other load on the machine.
"""

import argparse
import asyncio
import json
import os
import random
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from crepe_dist.settings.options import ServiceOptions

TOGETHER = (1, 32)


def main() -> None:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--clients", type=int, nargs="+", default=[1, 8, 32])
    flags.add_argument("--seconds", type=float, default=2.0, help="duration of a turn")
    flags.add_argument("--rounds", type=int, default=5)
    flags.add_argument("--filters", type=int, default=256)
    flags.add_argument("--units", type=int, default=1024)
    flags.add_argument("--feature-len", type=int, default=1014)
    flags.add_argument("--serve", type=int, metavar="TOGETHER", help=argparse.SUPPRESS)
    given = flags.parse_args()
    if given.serve:
        _serve(given)
        return
    services = [subprocess.Popen(_command(each), stdout=subprocess.PIPE, text=True) for each in TOGETHER]
    try:
        ports = [int(service.stdout.readline()) for service in services if service.stdout]
        heads = (f"{each} together: requests/s, median, p99, CPU ms" for each in TOGETHER)
        print(f"| clients | {' | '.join(heads)} | ratio |")
        print("|---" * (len(TOGETHER) + 2) + "|")
        for clients in given.clients:
            _row(clients, ports, [service.pid for service in services], given)
    finally:
        for service in services:
            service.terminate()


def _command(group_size: int) -> list[str]:
    return [sys.executable, __file__, "--serve", str(group_size), *sys.argv[1:]]


def _row(clients: int, ports: list[int], pids: list[int], given: Any) -> None:
    rates: list[list[float]] = [[] for _ in ports]
    latencies: list[list[float]] = [[] for _ in ports]
    busy = [0.0 for _ in ports]
    for turn in range(given.rounds + 1):
        for place, port in enumerate(ports):
            before = _processor_time(pids[place])
            times = asyncio.run(_load(port, clients, given.seconds if turn else 0.5, given.feature_len))
            if turn:  # the first one warms up
                rates[place].append(len(times) / given.seconds)
                latencies[place] += times
                busy[place] += _processor_time(pids[place]) - before
    cells = []
    for rate, times, seconds in zip(rates, latencies, busy):
        median, slowest = statistics.median(times) * 1000, statistics.quantiles(times, n=100)[98] * 1000
        cells.append(f"{statistics.median(rate):,.0f}, {median:.1f}, {slowest:.1f}, {seconds / len(times) * 1000:.2f}")
    ratio = statistics.median(b / a for a, b in zip(*rates))
    print(f"| {clients} | {' | '.join(cells)} | {ratio:.2f} |", flush=True)


def _processor_time(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def _load(port: int, clients: int, seconds: float, length: int) -> list[float]:
    """Send requests for that long; return the seconds that each one took."""
    generator = random.Random(clients)
    text = "".join(generator.choices("etaoinshrdlu    ", k=min(length, 430)))
    body = json.dumps({"text": text}).encode()
    head = "POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    request = f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body
    due = time.perf_counter() + seconds
    times: list[float] = []

    async def client() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        while time.perf_counter() < due:
            began = time.perf_counter()
            writer.write(request)
            answer = await reader.readuntil(b"\r\n\r\n")
            assert b" 200 " in answer[:20], answer
            size = int(answer.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
            await reader.readexactly(size)
            times.append(time.perf_counter() - began)
        writer.close()

    await asyncio.gather(*(client() for _ in range(clients)))
    return times


def _serve(given: Any) -> None:
    from crepe_dist.data.char_encoder import CharEncoder
    from crepe_dist.model.backend import choose_for_inference
    from crepe_dist.model.inference import open_inference
    from crepe_dist.networks.paper import init
    from crepe_dist.networks.paper.config import PaperConfig
    from crepe_dist.predicting.predictor import Predictor
    from crepe_dist.serving import batching, server
    from crepe_dist.serving.app import ServiceMetrics, create_app

    encoding = CharEncoder(feature_len=given.feature_len)
    classes = [f"class {number}" for number in range(7)]
    shape = PaperConfig(encoding.num_ids, given.feature_len, len(classes), given.filters, given.units, 0.0)
    arrays = {name: each.data for name, each in init.init_parameters(shape, seed=0).items()}
    predictor = Predictor(open_inference(shape, arrays, choose_for_inference(shape)), encoding, classes)
    metrics = ServiceMetrics(predictor.path.name, predictor.kernels)
    batching.BATCH_TEXTS = given.serve
    batcher = batching.DynamicBatcher(predictor.predict, predictor.explain, metrics.batch_texts.observe)
    batcher.submit(["warm-up"]).result()
    with server.listen("127.0.0.1", 0) as listener:
        print(listener.getsockname()[1], flush=True)
        server.serve(create_app(batcher, predictor, metrics, ServiceOptions()), listener, 10)


if __name__ == "__main__":
    main()
