#!/usr/bin/env python3
"""Measure the accuracy of the network and of scikit-learn's models on texts with typing errors.

    uv run --group comparison benchmarks/robustness.py RUN
    uv run --group comparison benchmarks/robustness.py RUN RUN --out docs/images/robustness.svg

All models score the same test documents with the same errors (crepe_dist/data/typos.py). They were trained on the same
rows without errors, except for runs with --data.typos. Prints a Markdown table of accuracies by the share of characters
with an error. scikit-learn's models are those of benchmarks/baselines.py.
"""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path

import baselines

from crepe_dist import command
from crepe_dist.data.dataset import Dataset, Part
from crepe_dist.data.typos import with_typos
from crepe_dist.distributed.join import join
from crepe_dist.errors import UserError
from crepe_dist.files import write_text
from crepe_dist.reports import drawing
from crepe_dist.reports.run_figures import LINE_STYLES, RUN_COLOURS
from crepe_dist.runs.run_record import RunRecord, open_run
from crepe_dist.settings import arguments

RATES = (0.0, 0.02, 0.05, 0.1)
BATCH_SIZE = 512
Curve = tuple[str, list[float]]


def main() -> None:
    flags = arguments.Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="runs on the same data")
    flags.add_argument("--data", type=Path, metavar="DIR", help="folder of the data, if it has moved")
    flags.add_argument("--out", type=Path, metavar="FILE", help="also draw the curves, as SVG")
    given = flags.parse_args()
    arguments.check_output(given.out, "--out")
    records = [open_run(run) for run in given.runs]
    dataset = records[0].dataset(given.data)
    for record in records:
        if record.fingerprint != dataset.fingerprint:
            raise UserError(f"{record.path} was trained on other data", remedy="name runs on the same data")
    noisy = [with_typos(dataset.parts["test"], rate, letters=dataset.encoding.letters) for rate in RATES]
    curves = [(_name(record), _network(record, noisy)) for record in records] + _baselines(dataset, noisy)
    print(
        f"| {len(noisy[0]):,} test documents of {dataset.name} | {' | '.join(f'{100 * rate:g} %' for rate in RATES)} |"
    )
    print("|---" * (len(RATES) + 1) + "|")
    for name, accuracies in curves:
        print(f"| {name} | {' | '.join(f'{100 * accuracy:.1f} %' for accuracy in accuracies)} |")
    if given.out is not None:
        write_text(given.out, _picture(curves))


def _name(record: RunRecord) -> str:
    name = "n-grams" if record.about["network"].get("kind") == "ngrams" else "convolutions"
    rate = record.settings.get("data.typos", 0.0)
    return f"{name}, data.typos {rate:g}" if rate else name


def _network(record: RunRecord, parts: list[Part]) -> list[float]:
    with join() as world:
        import crepe_dist
        from crepe_dist.training.evaluation import evaluate

        engine = crepe_dist.load(record.path).engine
        return [evaluate(engine, part, BATCH_SIZE, world).accuracy for part in parts]


def _baselines(dataset: Dataset, parts: list[Part]) -> list[Curve]:
    noisy = [baselines.shown(part, dataset.encoding) for part in parts]
    return [
        (name, [float(model.score(texts, parts[0].labels)) for texts in noisy])
        for name, model in baselines.trained(dataset)
    ]


def _picture(curves: list[Curve]) -> str:
    with drawing.style():
        legend = 0.2 + 0.2 * -(-len(curves) // 2)
        figure, axes = drawing.blank(2.8 + legend, left=0.8, top=legend)
        for (name, accuracies), (style, colour) in zip(curves, itertools.product(LINE_STYLES, RUN_COLOURS)):
            axes.plot(RATES, accuracies, color=colour, linestyle=style, marker="o", markersize=3.5, label=name)
        axes.set(xlabel="characters with a typing error", ylabel="accuracy", xticks=RATES)
        axes.xaxis.set_major_formatter(lambda rate, _: f"{100 * rate:g} %")
        axes.yaxis.set_major_formatter(lambda share, _: f"{100 * share:g} %")
        axes.grid(axis="y")
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2)
        return drawing.standalone(figure)


if __name__ == "__main__":
    command.run(main)
