#!/usr/bin/env python3
"""Compare training of Crepe in each build of the kernels with the fastest matrix product of that build, in turns.

    uv run benchmarks/ceiling.py --rounds 20
    OMP_NUM_THREADS=1 taskset -c 0 uv run benchmarks/ceiling.py --builds amx --sizes small large

Prints a Markdown table of medians over the rounds, and of the best of each: on a shared machine those are the moments
when a core is not shared.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from functools import partial

from crepe_dist import command
from crepe_dist.distributed.launch import detect, import_mxnet
from crepe_dist.native import library
from crepe_dist.settings import arguments
from crepe_dist.settings.limits import whole

SIZES = {"small": (256, 1024), "large": (1024, 2048)}  # filters and units of the paper
CHARACTERS, CLASSES = 1014, 7


def main() -> None:
    flags = arguments.Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--builds", nargs="+", default=library.runnable(), metavar="BUILD", help="default: all")
    flags.add_argument("--sizes", nargs="+", default=["small"], choices=SIZES, metavar="SIZE", help="small, large")
    flags.add_argument("--batch", type=whole(1, 1024), default=128, metavar="N", help="default: 128")
    flags.add_argument("--rounds", type=whole(1, 1000), default=10, metavar="N", help="default: 10")
    flags.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    given = flags.parse_args()
    if given.here:
        measure(given.sizes, given.batch, given.rounds)
        return
    print("| build | network | precision | documents/s | product, GFLOP/s | share | best of each | product | share |")
    print("|---|---|---|---|---|---|---|---|---|")
    for build in given.builds:
        command_line = [sys.executable, "-W", "ignore", __file__, "--here", "--batch", str(given.batch)]
        command_line += ["--rounds", str(given.rounds), "--sizes", *given.sizes]
        done = subprocess.run(
            command_line, env={**os.environ, library.SWITCH: build}, stdout=subprocess.PIPE, text=True, check=True
        )
        for line in done.stdout.splitlines():
            row = json.loads(line)
            print(f"| {build} | {' | '.join(row)} |", flush=True)


def measure(sizes: list[str], size_of_batch: int, rounds: int) -> None:
    """Print a row of the table for each network and precision, as JSON."""
    import_mxnet(detect())
    import statistics

    import mxnet as mx
    import numpy as np

    from crepe_dist.benchmarking import ceiling, ours
    from crepe_dist.data.alphabet import ALPHABET
    from crepe_dist.engines.matrix_products import products
    from crepe_dist.networks.paper.shape import PaperShape
    from crepe_dist.timing import in_turns, paired, rate

    device = mx.cpu()
    generator = np.random.default_rng(0)
    codes = generator.integers(0, len(ALPHABET), [size_of_batch, CHARACTERS], dtype=np.uint8)
    for size in sizes:
        shape = PaperShape(len(ALPHABET), CHARACTERS, CLASSES, *SIZES[size])
        for precision in ours.precisions(device):
            network = ceiling.open_network(shape, device, ours.ready_batch(codes, CLASSES), precision)
            product = products(0.0, device)[f"ours, {precision}"]
            step = partial(rate, partial(network.training.repeat, network.batch, 1), 0.0)
            turns = in_turns({"step": step, "product": product}, rounds)
            operations = shape.training_operations()
            median, best = ({name: kind(each) for name, each in turns.items()} for kind in (statistics.median, max))
            row = [size, precision]
            for found, share in (
                (median, paired(turns["step"], turns["product"])),
                (best, best["step"] / best["product"]),
            ):
                row += [f"{found['step']:,.0f}", f"{found['product'] / 1e9:,.0f}", f"{operations * share:.2f}"]
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    command.run(main)
