#!/usr/bin/env python3
"""Measure the strongest simple rivals on data sets: a linear SVM of words and characters, and fastText.

    uv run --group comparison benchmarks/baselines.py data/sample data/agnews_part
    uv run --group comparison --with fasttext-wheel benchmarks/baselines.py data/sample --fasttext

They read the characters that Crepe reads. The validation split chooses a setting, which is then trained again on the
training and validation rows. Prints the test accuracies of both models in %; the standard error is
sqrt(p (1 - p) / n). The times are those of training the second model and scoring the test split with it, and of the
choice.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import math
import re
import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from crepe_dist import command, machine
from crepe_dist.data.dataset import open_dataset
from crepe_dist.errors import UserError
from crepe_dist.settings.flags import Parser

SVM = [{"C": penalty} for penalty in (0.1, 0.3, 1)]
FASTTEXT = [
    {"epoch": epochs, **read} for epochs in (5, 25, 100) for read in ({"wordNgrams": 2}, {"minn": 2, "maxn": 6})
]
Settings = Sequence[dict[str, Any]]  # arguments of the model
Labels = npt.NDArray[np.int32]
Scored = Iterator[tuple[dict[str, Any], Callable[[list[str], Labels], float]]]  # settings, and accuracy of the model


def main() -> None:
    flags = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("data", type=Path, nargs="+", metavar="DIR", help="prepared data with a validation split")
    flags.add_argument("--fasttext", action="store_true", help="also train fastText, on all cores")
    options = flags.parse_args()
    rivals = {"linear SVM": svm, **({"fastText": fasttext} if options.fasttext else {})}
    if not all(map(importlib.util.find_spec, ("sklearn", "fasttext")[: len(rivals)])):
        here = shlex.join(["uv", "run", "--group", "comparison", "--with", "fasttext-wheel", *sys.argv])
        raise UserError("scikit-learn or fastText is not installed", "the project does not depend on them", here)
    print("| data | rival | setting | training rows | all rows | time | choice |\n" + "|---" * 7 + "|", flush=True)
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in rivals}
    for data in options.data:
        train, validation, test = read(data)
        everything = train[0] + validation[0], np.concatenate([train[1], validation[1]])
        for name, rival in rivals.items():
            began = time.monotonic()
            scores = ((score(*validation), setting, score) for setting, score in rival(*train))
            _, setting, score = max(scores, key=itemgetter(0))
            alone, chosen = score(*test), time.monotonic()
            _, score = next(rival(*everything, [setting]))
            both, ended = score(*test), time.monotonic()
            found[name].append((alone, both))
            shown = " ".join(f"{argument}={value}" for argument, value in setting.items())
            error = 100 * math.sqrt(both * (1 - both) / len(test[1]))
            results = (
                f"{100 * alone:.2f} | {100 * both:.2f} ± {error:.2f} | {ended - chosen:.1f} s | {chosen - began:.1f} s"
            )
            print(f"| {data.name} | {name} | {shown} | {results} |", flush=True)
    for name, pairs in found.items():
        alone, both = 100 * np.mean(pairs, axis=0)
        print(f"| mean | {name} | | {alone:.2f} | {both:.2f} | | |")


def read(data: Path) -> list[tuple[list[str], Labels]]:
    """Decode the texts of the train, validation and test splits; return them with their labels."""
    dataset = open_dataset(data)
    if "validation" not in dataset.splits:
        raise UserError(f"{data} has no validation split", "it chooses the setting", "prepare with --validation 0.1")
    splits = [dataset.splits[name] for name in ("train", "validation", "test")]
    decode = dataset.encoding.decode
    return [([decode(codes) for codes in split.codes(np.arange(len(split)))], split.labels) for split in splits]


def svm(texts: list[str], labels: Labels, settings: Settings = SVM) -> Scored:
    """Train linear SVMs on TF-IDF of words and word pairs, and of 2 to 5 characters across words."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.pipeline import make_pipeline, make_union
    from sklearn.svm import LinearSVC

    characters = {"analyzer": "char", "ngram_range": (2, 5), "min_df": 3, "max_features": 600_000}
    words = TfidfVectorizer(sublinear_tf=True, ngram_range=(1, 2), min_df=2)
    union = make_union(words, TfidfVectorizer(sublinear_tf=True, **characters))
    vectors = union.fit_transform(texts)
    for setting in settings:
        yield setting, make_pipeline(union, LinearSVC(random_state=0, **setting).fit(vectors, labels)).score


def fasttext(texts: list[str], labels: Labels, settings: Settings = FASTTEXT) -> Scored:
    """Train fastText; as it advises, punctuation marks are separate words, and the rows are in random order."""
    from fasttext import train_supervised

    lines = [f"__label__{label} {_spaced(text)}\n" for label, text in zip(labels.tolist(), texts)]
    with tempfile.NamedTemporaryFile("w", encoding="utf-8") as file:
        file.writelines(lines[row] for row in np.random.default_rng(0).permutation(len(lines)))
        file.flush()
        for setting in settings:
            model = train_supervised(file.name, lr=0.5, dim=10, thread=machine.cores(), verbose=0, **setting)
            yield setting, functools.partial(_accuracy, model)


def _accuracy(model: Any, texts: list[str], labels: Labels) -> float:
    predicted = model.predict([_spaced(text) for text in texts])[0]
    return float(np.mean([names[0] == f"__label__{label}" for names, label in zip(predicted, labels.tolist())]))


def _spaced(text: str) -> str:
    return re.sub(r"([^\w ])", r" \1 ", text)


if __name__ == "__main__":
    command.run(main)
