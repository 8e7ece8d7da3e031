#!/usr/bin/env python3
"""Measure the accuracy of each part of trained Crepe networks on the test split.

    uv run benchmarks/parts.py RUN [RUN ...]

Prints a Markdown table: the whole network, its n-gram table alone, and its tower alone. A part is alone when the last
weights of the other are zero.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from crepe_dist import command
from crepe_dist.distributed.join import join_to_score
from crepe_dist.errors import UserError
from crepe_dist.runs.run_record import open_run
from crepe_dist.settings import arguments

BATCH_SIZE = 512
# For each part, the parameters of the other that are set to zero.
SILENCED = {
    "Crepe": (),
    "n-gram table": ("tower.out.weight", "tower.out.bias"),
    "tower": ("ngrams.weight", "ngrams.bias"),
}


def main() -> None:
    flags = arguments.Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("runs", type=Path, nargs="+", metavar="RUN")
    given = flags.parse_args()
    print(f"| data | seed | {' | '.join(SILENCED)} |\n|---|---|{'---|' * len(SILENCED)}", flush=True)
    for run in given.runs:
        record = open_run(run)
        if record.about["network"].get("kind") != "crepe":
            raise UserError(f"{run} is not a run of Crepe", "its network has no two parts", "name other runs")
        test = record.dataset(None).splits["test"]
        with join_to_score() as world:
            import crepe_dist
            from crepe_dist.model.inference import open_inference
            from crepe_dist.training.evaluation import evaluate

            engine, found = crepe_dist.load(run).engine, []
            for silenced in SILENCED.values():
                zeros = {name: 0 * engine.arrays[name] for name in silenced}
                rest = open_inference(engine.shape, {**engine.arrays, **zeros}, engine.plan)
                found.append(f"{100 * evaluate(rest, test, BATCH_SIZE, world).accuracy:.2f} %")
        print(f"| {record.dataset(None).name} | {record.settings['training.seed']} | {' | '.join(found)} |", flush=True)


if __name__ == "__main__":
    command.run(main)
