#!/usr/bin/env python3
"""Measure the accuracy of settings on data sets, as mean and standard deviation over seeds, and the training time.

    uv run benchmarks/accuracy.py data/sample
    uv run benchmarks/accuracy.py data/imdb data/ag --seeds 3 --with "" --with "--config configs/paper_small.yaml"
    uv run benchmarks/accuracy.py data/sample --with "" --with "--width 32" --with "--epochs 10"
    uv run --group comparison benchmarks/accuracy.py data/sample --baselines
    uv run --group comparison --with fasttext-wheel benchmarks/accuracy.py data/sample --baselines --fasttext

Trains on each data set with each set of flags (--with; default: no flags) and each seed, in a temporary folder or in
--out, and prints a Markdown table. The time is that of the whole command. The accuracy is that of the reported epoch:
chosen on the validation split if there is one, else the last.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from crepe_dist import command, machine
from crepe_dist.data.alphabet import Encoding
from crepe_dist.data.dataset import Dataset, Split, open_dataset
from crepe_dist.errors import UserError
from crepe_dist.runs.run_record import RunRecord, open_run
from crepe_dist.settings.fields import whole
from crepe_dist.settings.flags import Parser

FEW = 30_000  # rows up to which 100 epochs are worth a try; with more, fewer epochs do
Score = Callable[[list[str], Any], float]  # from texts and their labels to the accuracy


def main() -> None:
    flags = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("data", type=Path, nargs="+", metavar="DIR", help="prepared data")
    flags.add_argument(
        "--with", type=str, dest="settings", action="append", metavar="FLAGS", help="flags of crepe_dist.train, quoted"
    )
    flags.add_argument("--seeds", type=whole(1, 1000), default=1, metavar="N", help="default: 1")
    flags.add_argument("--processes", type=whole(1, 1024), default=1, metavar="N", help="default: 1")
    flags.add_argument("--out", type=Path, metavar="DIR", help="keep the runs in DIR, and reuse those found there")
    flags.add_argument("--baselines", action="store_true", help="also train scikit-learn's models on the same rows")
    flags.add_argument("--fasttext", action="store_true", help="also train fastText; with --baselines")
    options = flags.parse_args()
    print("| data | settings | test accuracy | time |\n|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for data in options.data:
            for name, accuracy, seconds in _baselines(data, options.fasttext) if options.baselines else ():
                print(f"| {data.name} | {name} | {100 * accuracy:.2f} % | {seconds:.0f} s |", flush=True)
            for settings in options.settings or [""]:
                out = options.out or Path(folder)
                results = [train(out, data, settings, seed, options.processes) for seed in range(options.seeds)]
                print(f"| {data.name} | {settings or 'the defaults'} | {_summary(results)} |", flush=True)


def train(out: Path, data: Path, settings: str, seed: int, processes: int) -> tuple[RunRecord, float]:
    """Train a run unless it exists; return its record and the seconds it took."""
    name = "_".join([data.name, *shlex.split(settings), str(seed)]).replace("/", "-")
    run, timed = out / name, out / f"{name}.json"
    if not timed.is_file():
        horovodrun = [str(Path(sys.executable).with_name("horovodrun")), "-np", str(processes)] if processes > 1 else []
        arguments = ["--data", str(data), "--run-dir", str(run), "--seed", str(seed), *shlex.split(settings)]
        began = time.monotonic()
        done = subprocess.run(
            [*horovodrun, sys.executable, "-m", "crepe_dist.train", *arguments], capture_output=True, text=True
        )
        if done.returncode != 0:
            raise UserError(
                f"training with {settings or 'the defaults'} on {data} failed",
                done.stderr[-1000:],
                "run the command by itself",
            )
        timed.write_text(json.dumps({"seconds": time.monotonic() - began}) + "\n", encoding="utf-8")
    seconds = json.loads(timed.read_text(encoding="utf-8"))["seconds"]
    return open_run(run), seconds


def _baselines(data: Path, with_fasttext: bool) -> Iterator[tuple[str, float, float]]:
    """Yield name, accuracy, and seconds of training and scoring of each baseline."""
    dataset = open_dataset(data)
    test = dataset.splits["test"]
    texts, began = _shown(test, dataset.encoding), time.monotonic()
    for name, score in chain(scikit_learn(dataset), fasttext(dataset) if with_fasttext else ()):
        accuracy, now = score(texts, test.labels), time.monotonic()
        yield name, accuracy, now - began
        began = now


def scikit_learn(dataset: Dataset) -> Iterator[tuple[str, Score]]:
    """Yield the name and the score of each of scikit-learn's models, trained on the train split.

    Naive Bayes is multinomial with Laplace smoothing. It counts words, or character 4-grams across word boundaries. The
    linear SVM has squared hinge loss (C = 0.5) and reads sublinear TF-IDF: of words and word pairs, or of character
    1- to 5-grams within words that occur in at least two documents.
    """
    try:
        from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer
        from sklearn.naive_bayes import MultinomialNB
        from sklearn.pipeline import make_pipeline
        from sklearn.svm import LinearSVC
    except ModuleNotFoundError as error:
        here = shlex.join(["uv", "run", "--group", "comparison", *sys.argv])
        raise UserError("scikit-learn is not installed", "only the group comparison has it", here) from error
    split = dataset.splits["train"]
    texts = _shown(split, dataset.encoding)
    within = {"analyzer": "char_wb", "ngram_range": (1, 5), "min_df": 2}
    for name, steps in {
        "naive Bayes, words": (CountVectorizer(), MultinomialNB()),
        "naive Bayes, 4 characters": (CountVectorizer(analyzer="char", ngram_range=(4, 4)), MultinomialNB()),
        "linear SVM, 1-2 words": (TfidfVectorizer(sublinear_tf=True, ngram_range=(1, 2)), LinearSVC(C=0.5)),
        "linear SVM, 1-5 characters": (TfidfVectorizer(sublinear_tf=True, **within), LinearSVC(C=0.5)),
    }.items():
        yield name, make_pipeline(*steps).fit(texts, split.labels).score


def fasttext(dataset: Dataset) -> Iterator[tuple[str, Score]]:
    """Yield the name and the score of fastText with a few settings, trained on all cores."""
    for epochs in (5, 25, 100) if len(dataset.splits["train"]) <= FEW else (5, 25):
        for characters in ((0, 0), (2, 6)):
            read = "{}-{} characters".format(*characters) if characters[1] else "1-2 words"
            yield f"fastText, {read}, {epochs} epochs", _fasttext(dataset, characters, epochs)


def _fasttext(dataset: Dataset, characters: tuple[int, int], epochs: int) -> Score:
    """Train fastText on the train split; return a function from texts and their labels to the accuracy.

    As its documentation advises, punctuation marks are separate words, and the rows are in random order.
    """
    try:
        import fasttext
    except ModuleNotFoundError as error:
        here = shlex.join(["uv", "run", "--group", "comparison", "--with", "fasttext-wheel", *sys.argv])
        raise UserError("fastText is not installed", "the project does not depend on it", here) from error
    split = dataset.splits["train"]
    texts = _shown(split, dataset.encoding)
    lines = [f"__label__{label} {_spaced(text)}\n" for label, text in zip(split.labels.tolist(), texts)]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "train.txt"
        order = np.random.default_rng(0).permutation(len(lines))
        path.write_text("".join(lines[row] for row in order), encoding="utf-8")
        model = fasttext.train_supervised(
            str(path),
            lr=0.5,
            epoch=epochs,
            dim=10,
            bucket=2_000_000,
            wordNgrams=1 if characters[1] else 2,
            minn=characters[0],
            maxn=characters[1],
            thread=machine.cores(),
            verbose=0,
        )

    def score(texts: list[str], labels: npt.NDArray[np.int32]) -> float:
        predicted = [int(names[0].rpartition("__")[2]) for names in model.predict(list(map(_spaced, texts)))[0]]
        return float(np.mean(labels == np.array(predicted)))

    return score


def _spaced(text: str) -> str:
    return re.sub(r"([^\w ])", r" \1 ", text)


def _shown(split: Split, encoding: Encoding) -> list[str]:
    """Decode the texts of a split from their codes."""
    return [encoding.decode(codes) for codes in split.codes(np.arange(len(split)))]


def _summary(results: list[tuple[RunRecord, float]]) -> str:
    accuracies = [record.metrics["test_accuracy"] for record, _ in results]
    seconds = [duration for _, duration in results]
    spread = f" ± {100 * statistics.stdev(accuracies):.2f}" if len(results) > 1 else ""
    return f"{100 * statistics.mean(accuracies):.2f}{spread} % | {statistics.mean(seconds):.0f} s"


if __name__ == "__main__":
    command.run(main)
