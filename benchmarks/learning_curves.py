#!/usr/bin/env python3
"""Measure test accuracy against the number of training rows, of our networks and of simpler models.

    uv run --group comparison --with fasttext-wheel benchmarks/learning_curves.py data/paragraphs --out curves.csv
    uv run benchmarks/learning_curves.py data/sample --out curves.csv --models ngrams "crepe --epochs 3" --rows 1000
    uv run benchmarks/learning_curves.py data/sample data/ag --out curves.csv --models --picture curves.svg

The subsets of the training rows are nested. Every model sees the same rows and the same characters. The validation
split chooses the epoch of a network and the setting of the others (baselines.py). The model "unlabelled" is Crepe that
also learns from the other training rows, without their labels. "minilm" and "wordllama" are logistic regressions on the
vectors of pre-trained sentence encoders, which uv installs on first use.

Each point is saved to --out at once. Run the same command again to resume; to repeat points, remove their lines. The
seconds of a network are those of the whole command; those of the others are of training with the chosen setting and of
scoring, without the encoding of texts, whose vectors are kept. At the end, a Markdown table has all points in --out of
the data sets that are named.
"""

from __future__ import annotations

import argparse
import shlex
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import accuracy
import baselines
import curves
import points as saved
import subset
from points import Point

from crepe_dist import command
from crepe_dist.data.dataset import UNLABELLED, Dataset, open_dataset
from crepe_dist.errors import UserError
from crepe_dist.files import write_text
from crepe_dist.settings.fields import whole
from crepe_dist.settings.flags import Parser, check_output

ROWS = (1000, 3000, 10_000, 30_000, 100_000, 250_000, 1_000_000)
NETWORKS = ("crepe", "ngrams", "paper", UNLABELLED)
# Each yields the settings to choose from, trained: a name, and a function from texts to the number of correct labels.
Trained = Iterator[tuple[str, Callable[[list[str], Any], float]]]
PEERS: dict[str, Callable[[Dataset], Trained]] = {
    "svm": lambda data: ((name, model.score) for name, model in baselines.trained(data, "linear SVM")),
    "fasttext": baselines.trained_fasttext,
    "bayes": lambda data: ((name, model.score) for name, model in baselines.trained(data, "naive Bayes")),
    "minilm": lambda data: baselines.trained_on_vectors(data, "minilm"),
    "wordllama": lambda data: baselines.trained_on_vectors(data, "wordllama"),
}
TITLES = {
    "crepe": "Crepe",
    UNLABELLED: "Crepe, rest unlabelled",
    "ngrams": "n-gram table",
    "minilm": "MiniLM",
    "wordllama": "WordLlama",
    "svm": "linear SVM",
    "fasttext": "fastText",
    "bayes": "naive Bayes",
}  # in the order of the columns and curves
Means = dict[str, dict[int, float]]  # accuracies by model and number of rows
KEY = ("data", "fingerprint", "model", "rows", "test_rows", "seed")
COLUMNS = (*KEY, "accuracy", "setting", "seconds", "command")


def main() -> None:
    flags = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("data", type=Path, nargs="+", metavar="DIR", help="prepared data with a validation split")
    flags.add_argument("--out", type=Path, required=True, metavar="FILE", help="CSV of the points; kept and extended")
    flags.add_argument(
        "--models", nargs="*", default=[*NETWORKS, *PEERS], metavar="MODEL",
        help=f"{', '.join(NETWORKS)}, each with flags of crepe_dist.train in the same quotes; {', '.join(PEERS)}; "
        "none: only draw; default: all",
    )  # fmt: skip
    flags.add_argument(
        "--rows", type=whole(1, 10**9), nargs="+", default=ROWS, metavar="N",
        help="training rows; more than there are: all; default: 1000, 3000, … 1000000",
    )  # fmt: skip
    flags.add_argument(
        "--max-test", type=whole(1, 10**9), metavar="N", help="rows of the test and validation splits, at most"
    )
    flags.add_argument(
        "--max-validation", type=whole(1, 10**9), metavar="N", help="rows of the validation split, at most"
    )
    flags.add_argument(
        "--max-unlabelled", type=whole(1, 10**9), metavar="N", help=f"texts without labels, at most; for {UNLABELLED}"
    )
    flags.add_argument("--seed", type=whole(0, 2**31 - 1), default=0, metavar="N", help="default: 0")
    flags.add_argument("--picture", type=Path, metavar="FILE", help="draw the curves as SVG, a panel for each data set")
    options = flags.parse_args()
    check_output(options.picture, "--picture")
    for model in options.models:
        if model not in PEERS and model.split()[:1] not in [[name] for name in NETWORKS]:
            raise UserError(f"there is no model {model!r}", "", f"choose from {', '.join([*NETWORKS, *PEERS])}")
    datasets = [open_dataset(folder) for folder in dict.fromkeys(options.data)]
    points = saved.read(options.out)
    for dataset in datasets:
        for point in missing(dataset, options, points):
            points.append(point)
            saved.append(options.out, point)
            shown = f"{point['rows']:>9} rows  {point['model']:<10}  {float(point['accuracy']):.2%}"
            print(f"{dataset.name:<12} {shown}", flush=True)
    means = {dataset.name: _means(dataset, points) for dataset in datasets}
    print("\n".join(table(means)))
    if options.picture is not None:
        write_text(options.picture, picture(means))


def missing(dataset: Dataset, options: argparse.Namespace, points: list[Point]) -> Iterator[Point]:
    """Measure the points that are not among ``points``, the ones with few rows first."""
    if not {"validation", "test"} <= set(dataset.splits):
        again = "prepare it again with --validation 0.1"
        raise UserError(f"{dataset.folder} lacks a validation or test split", "it chooses the settings", again)
    most = {name: min(len(part), options.max_test or len(part)) for name, part in dataset.splits.items()}
    most["validation"] = min(most["validation"], options.max_validation or most["validation"])
    known = {tuple(point[name] for name in KEY) for point in points}
    for rows in sorted({min(rows, len(dataset.splits["train"])) for rows in options.rows}):
        with tempfile.TemporaryDirectory() as scratch:
            subsets: dict[int, Dataset] = {}  # by number of texts without labels
            for model in dict.fromkeys(options.models):
                facts = (dataset.name, dataset.fingerprint[:12], model, rows, most["test"], options.seed)
                key = tuple(map(str, facts))
                if key in known:
                    continue
                others = len(dataset.splits["train"]) - rows if model.split()[0] == UNLABELLED else 0
                others = min(others, options.max_unlabelled or others)
                if others not in subsets:
                    sizes = {**most, "train": rows, UNLABELLED: others}
                    subsets[others] = subset.write(dataset, Path(scratch) / f"data_{others}", sizes, options.seed)
                right, setting, seconds = measure(subsets[others], model, options.seed)
                start = ["benchmarks/learning_curves.py", str(dataset.folder), "--out", str(options.out)]
                start += ["--models", model, "--rows", str(rows), "--seed", str(options.seed)]
                for flag in ("--max-test", "--max-validation", "--max-unlabelled"):
                    limit = getattr(options, flag[2:].replace("-", "_"))
                    start += [flag, str(limit)] if limit else []
                figures = (f"{right:.5f}", setting, f"{seconds:.1f}", shlex.join(start))
                yield dict(zip(COLUMNS, (*key, *figures)))


def measure(data: Dataset, model: str, seed: int) -> tuple[float, str, float]:
    """Train a model; return its test accuracy, its setting, and the seconds that it took."""
    if model in PEERS:
        return _best(data, PEERS[model](data))
    network, *flags = shlex.split(model)
    settings = shlex.join(["--model", "crepe" if network == UNLABELLED else network, *flags])
    with tempfile.TemporaryDirectory() as scratch:
        record, seconds = accuracy.train(Path(scratch), data.folder, settings, seed, processes=1)
        reported = record.provenance.get(UNLABELLED, {}).get("reported")  # the student, or the first network
        setting = f"{settings}; reported: {reported}" if reported else settings
        return record.metrics["test_accuracy"], setting, seconds


def _best(data: Dataset, trained: Trained) -> tuple[float, str, float]:
    texts = {name: baselines.shown(data.splits[name], data.encoding) for name in ("validation", "test")}
    best = (-1.0, 0.0, "", 0.0)
    began = time.monotonic()
    for name, score in trained:
        seconds, validation = time.monotonic() - began, score(texts["validation"], data.splits["validation"].labels)
        if validation > best[0]:
            began = time.monotonic()
            test = score(texts["test"], data.splits["test"].labels)
            best = (validation, test, name, seconds + time.monotonic() - began)
        began = time.monotonic()
    return best[1:]


def _means(dataset: Dataset, points: list[Point]) -> Means:
    """Average the accuracies of a data set over the seeds."""
    accuracies: dict[str, dict[int, list[float]]] = {}
    for point in points:
        if point["fingerprint"] == dataset.fingerprint[:12]:
            by_rows = accuracies.setdefault(point["model"], {})
            by_rows.setdefault(int(point["rows"]), []).append(float(point["accuracy"]))
    return {
        model: {rows: statistics.mean(accuracies[model][rows]) for rows in sorted(accuracies[model])}
        for model in dict.fromkeys([*TITLES, *accuracies])
        if model in accuracies
    }


def table(means: dict[str, Means]) -> list[str]:
    """Make the lines of a Markdown table: a column for each model, the best one of a row in bold type."""
    models = list(dict.fromkeys(model for by_model in means.values() for model in by_model))
    lines = ["| data | labels | " + " | ".join(TITLES.get(model, model) for model in models) + " |"]
    lines.append("|---" * (len(models) + 2) + "|")
    for name, by_model in means.items():
        for rows in sorted({rows for by_rows in by_model.values() for rows in by_rows}):
            accuracies = [by_model.get(model, {}).get(rows) for model in models]
            best = max(accuracy for accuracy in accuracies if accuracy is not None)
            cells = ["" if each is None else f"{100 * each:.1f} %" for each in accuracies]
            cells = [f"**{cell}**" if each == best else cell for cell, each in zip(cells, accuracies)]
            lines.append(f"| {name} | {rows:,} | " + " | ".join(cells) + " |")
    return lines


def picture(means: dict[str, Means]) -> str:
    """Draw a curve for each model, in a panel for each data set if there are several."""
    panels: dict[str, list[curves.Curve]] = {}
    for name, by_model in means.items():
        panels[name] = [
            (TITLES.get(model, model), list(by_rows), list(by_rows.values())) for model, by_rows in by_model.items()
        ]
    if not any(panels.values()):
        raise UserError("there are no points of these data sets to draw", "--models names none", "leave --models out")
    if len(panels) > 1:
        return curves.panels(panels, "training rows with labels", curves.logarithmic)
    return curves.picture(next(iter(panels.values())), "training rows with labels", curves.logarithmic, columns=2)


if __name__ == "__main__":
    command.run(main)
