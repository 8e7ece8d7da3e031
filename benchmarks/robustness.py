#!/usr/bin/env python3
"""Measure the accuracy of the network and of scikit-learn's models on texts with typing errors.

    uv run --group comparison benchmarks/robustness.py RUN
    uv run --group comparison benchmarks/robustness.py RUN RUN --out docs/images/robustness.svg

All models score the same test documents with the same errors (``data.augmentation``). They were trained on the same
rows without errors, except for runs with --typos. Prints a Markdown table of accuracies by the share of characters
with an error. scikit-learn's models are those of benchmarks/baselines.py.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

import baselines
import curves

from crepe_dist import command
from crepe_dist.data.augmentation import with_typos
from crepe_dist.data.dataset import Dataset, Split
from crepe_dist.distributed.join import join
from crepe_dist.errors import UserError
from crepe_dist.files import write_text
from crepe_dist.runs.run_record import RunRecord, open_run
from crepe_dist.settings.flags import Parser, check_output

if TYPE_CHECKING:
    from matplotlib.axes import Axes

RATES = (0.0, 0.02, 0.05, 0.1)
BATCH_SIZE = 512


def main() -> None:
    flags = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="runs on the same data")
    flags.add_argument("--data", type=Path, metavar="DIR", help="folder of the data, if it has moved")
    flags.add_argument("--out", type=Path, metavar="FILE", help="also draw the curves, as SVG")
    given = flags.parse_args()
    check_output(given.out, "--out")
    records = [open_run(run) for run in given.runs]
    dataset = records[0].dataset(given.data)
    for record in records:
        if record.fingerprint != dataset.fingerprint:
            raise UserError(f"{record.path} was trained on other data", remedy="name runs on the same data")
    noisy = [with_typos(dataset.splits["test"], rate, encoding=dataset.encoding) for rate in RATES]
    found = [(_name(record), _network(record, noisy)) for record in records] + _baselines(dataset, noisy)
    print(
        f"| {len(noisy[0]):,} test documents of {dataset.name} | {' | '.join(f'{100 * rate:g} %' for rate in RATES)} |"
    )
    print("|---" * (len(RATES) + 1) + "|")
    for name, accuracies in found:
        print(f"| {name} | {' | '.join(f'{100 * accuracy:.1f} %' for accuracy in accuracies)} |")
    if given.out is not None:
        lines = [(name, RATES, accuracies) for name, accuracies in found]
        write_text(given.out, curves.picture(lines, "characters with a typing error", _rates, columns=2))


def _name(record: RunRecord) -> str:
    name = {"crepe": "Crepe", "ngrams": "n-grams", "paper": "the paper's network"}[
        record.description["network"]["kind"]
    ]
    rate = record.settings.get("data.typos", 0.0)
    return f"{name}, data.typos {rate:g}" if rate else name


def _network(record: RunRecord, parts: list[Split]) -> list[float]:
    with join() as world:
        import crepe_dist
        from crepe_dist.training.evaluation import evaluate

        engine = crepe_dist.load(record.path).engine
        return [evaluate(engine, split, BATCH_SIZE, world).accuracy for split in parts]


def _baselines(dataset: Dataset, parts: list[Split]) -> list[tuple[str, list[float]]]:
    noisy = [baselines.shown(split, dataset.encoding) for split in parts]
    return [
        (name, [float(model.score(texts, parts[0].labels)) for texts in noisy])
        for name, model in baselines.trained(dataset)
    ]


def _rates(axes: Axes) -> None:
    axes.set_xticks(RATES)
    axes.xaxis.set_major_formatter(lambda rate, _: f"{100 * rate:g} %")


if __name__ == "__main__":
    command.run(main)
