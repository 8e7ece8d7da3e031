#!/usr/bin/env python3
"""Project an epoch of Crepe on many hosts from measured rates.

    uv run benchmarks/projection.py growth.csv data/growth/1000000 --update-rate 5e6
    uv run benchmarks/projection.py growth.csv data/growth/1000000 --update-rate 5e6 --hosts 8 64 512 --gigabits 100

Rates of `prepare` and training, and bytes on disk, are those of the most rows in growth.csv (`growth.py`). The rows of
the tables that batches touch are counted in the data set. Network and disk are assumptions, the flags --gigabits,
--latency and --reads. The global batch grows with the hosts. No part of a step overlaps another, as on CPUs today:

    compute    batch of a host / documents per second
    dense      2 (H - 1) / H × bytes of the dense gradients / bandwidth    each host adds one piece
    rows       (H - 1) × rows of a host's batch × bytes of a row / bandwidth    each host sends its sums to all others
    messages   3 (H - 1) × latency    pieces, their sums, and rows
    update     rows of the global batch / rows that a host updates per second    each host has all tables

Nothing of this was measured on several hosts.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import growth
import numpy as np
from growth import Point

from crepe_dist import command, registry
from crepe_dist.data.dataset import Dataset, open_dataset
from crepe_dist.data.order import epoch_order
from crepe_dist.model.shape import Shape
from crepe_dist.settings.fields import real, whole
from crepe_dist.settings.flags import Parser
from crepe_dist.settings.options import ModelOptions

LOOK_AT = 512  # documents whose rows are looked up at a time
PERMUTED = 10**7  # numbers of the permutation that is timed
PAGE = 4096  # bytes that a disk reads at least


def main() -> None:
    flags = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("measured", type=Path, metavar="CSV", help="of growth.py, with crepe and prepare")
    flags.add_argument("data", type=Path, metavar="DIR", help="data set whose batches are counted")
    flags.add_argument("--rows", type=real(1, 1e15), default=1e9, metavar="N", help="default: 1e9")
    flags.add_argument("--hosts", type=whole(2, 10**6), nargs="+", default=[8, 64, 512], metavar="H")
    flags.add_argument(
        "--batch", type=whole(1, 10**6), default=64, metavar="N", help="documents of a host; default: 64"
    )
    flags.add_argument("--update-rate", type=real(1, 1e12), required=True, metavar="R", help="rows/s, measured")
    flags.add_argument(
        "--gigabits", type=real(0, 1e5, open_below=True), default=25.0, help="of a host's link, a second"
    )
    flags.add_argument("--latency", type=real(0, 10), default=50e-6, metavar="S", help="of a message; default: 50e-6")
    flags.add_argument("--reads", type=real(1, 1e9), default=1e5, metavar="N", help="pages/s of a disk; default: 1e5")
    options = flags.parse_args()
    points = sorted(growth.read(options.measured), key=lambda point: point.rows)
    rows = max(point.rows for point in points if point.system == "crepe")
    rate = max(point.measured / point.seconds for point in points if (point.system, point.rows) == ("crepe", rows))
    prepared = [point for point in points if point.system == "prepare"][-1]
    data = open_dataset(options.data)
    characters, length, classes = data.encoding.codes, data.encoding.feature_len, len(data.classes)
    shape = registry.shape("crepe").for_data(ModelOptions(), characters, length, classes, int(options.rows))
    print_steps(options, rate, data, shape)
    print_resources(options, rate, prepared, data, shape)


def print_steps(options: Any, rate: float, data: Dataset, shape: Shape) -> None:
    """Print a table of the parts of a step, and of the time of an epoch."""
    tables = {name: shape.parameter_shapes()[name] for name in shape.tables}
    dense = 4 * (shape.parameters - sum(rows * columns for rows, columns in tables.values()))
    touched = rows_touched(data, shape, [options.batch, *(options.batch * hosts for hosts in options.hosts)])
    rows = {
        documents: sum(counts[documents] for counts in touched.values()) for documents in touched[next(iter(tables))]
    }
    # A record is the row's number and its sums, int32.
    sent = sum(touched[name][options.batch] * 4 * (columns + 1) for name, (_, columns) in tables.items())
    bandwidth, compute = options.gigabits * 1e9 / 8, options.batch / rate
    alone = compute + rows[options.batch] / options.update_rate
    own = rows[options.batch]
    print(f"a host: {rate:,.0f} documents/s, {own:,} rows of {sent / 1e6:.1f} MB in a batch of {options.batch}")
    print(f"dense gradients: {dense / 1e6:.1f} MB; link: {options.gigabits:g} Gb/s, {1e6 * options.latency:g} µs\n")
    print("| hosts | compute | dense | rows | messages | update | step | efficiency | an epoch |\n" + "|---" * 9 + "|")
    for hosts in options.hosts:
        parts = {
            "compute": compute,
            "dense": 2 * (hosts - 1) / hosts * dense / bandwidth,
            "rows": (hosts - 1) * sent / bandwidth,
            "messages": 3 * (hosts - 1) * options.latency,
            "update": rows[options.batch * hosts] / options.update_rate,
        }
        step = sum(parts.values())
        hours = options.rows / (options.batch * hosts) * step / 3600
        cells = [f"{1000 * seconds:,.1f} ms" for seconds in (*parts.values(), step)]
        print(f"| {hosts} | {' | '.join(cells)} | {alone / step:.0%} | {hours:,.1f} h |")


def print_resources(options: Any, rate: float, prepared: Point, data: Dataset, shape: Shape) -> None:
    """Print what a host needs besides the steps."""
    hours = options.rows * prepared.seconds / prepared.rows / 3600
    disk, pages = options.rows * prepared.disk / prepared.rows, rate * (1 + (data.encoding.feature_len - 1) / PAGE)
    began = time.process_time()
    epoch_order(PERMUTED, 0, 0)
    permuting = (time.process_time() - began) / PERMUTED * options.rows
    print(f"\nprepare: {hours:.1f} h on one host")
    print(
        f"data set: {disk / 1e9:,.0f} GB on each host; {pages:,.0f} of {options.reads:,.0f} pages/s, if not in memory"
    )
    print(f"permutation: {8 * options.rows / 1e9:.0f} GB and {permuting:.0f} s in each process, every epoch")
    print(f"parameters: {4 * shape.parameters / 1e6:.0f} MB, however many rows there are")


def rows_touched(data: Dataset, shape: Shape, batches: list[int]) -> dict[str, dict[int, int]]:
    """Count the different rows of each table that the first documents of an epoch touch, by their number."""
    train = data.splits["train"]
    order = epoch_order(len(train), 0, 0)
    seen = {name: np.zeros(shape.parameter_shapes()[name][0], bool) for name in shape.tables}
    counts: dict[str, dict[int, int]] = {name: {} for name in seen}
    done = 0
    for documents in sorted(set(batches)):
        for start in range(done, documents, LOOK_AT):
            codes = train.codes(order[start : min(start + LOOK_AT, documents)])
            for name, rows in shape.rows_used(codes).items():
                seen[name][rows] = True
        done = documents
        for name, rows in seen.items():
            counts[name][documents] = int(rows.sum())
    return counts


if __name__ == "__main__":
    command.run(main)
