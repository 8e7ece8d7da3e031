#!/usr/bin/env python3
"""Train fastText on a prepared data set and print its test accuracy.

    python -m crepe_dist.prepare sample --out data/sample_full --validation 0.1 --mode full
    uv run --with fasttext-wheel benchmarks/fasttext_baseline.py data/sample_full
    uv run --with fasttext-wheel benchmarks/fasttext_baseline.py data/sample_full --characters 2,6 --learning-rate 0.25

Mode full distinguishes upper and lower case, which helps fastText. As its documentation advises, punctuation marks are
separate words, and the rows are in random order. The vectors have 10 dimensions, as in the paper, and n-grams share
200,000 buckets.
"""

from __future__ import annotations

import argparse
import re
import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import baselines
import numpy as np
import numpy.typing as npt

from crepe_dist import command, machine
from crepe_dist.data.dataset import Dataset, open_dataset
from crepe_dist.errors import UserError
from crepe_dist.settings import arguments
from crepe_dist.settings.limits import whole

FEW = 30_000  # rows up to which 100 epochs are worth a try; with more, fewer epochs do


@dataclass(frozen=True)
class Setting:
    """Setting of fastText; without lengths of character n-grams, it reads words and word pairs."""

    characters: tuple[int, int] = (0, 0)
    learning_rate: float = 0.5
    epochs: int = 50
    buckets: int = 200_000

    def __str__(self) -> str:
        read = "{}-{} characters".format(*self.characters) if self.characters[1] else "1-2 words"
        return f"fastText, {read}, learning rate {self.learning_rate:g}, {self.epochs} epochs"


def main() -> None:
    flags = arguments.Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("data", type=Path, metavar="DIR", help="prepared data")
    flags.add_argument("--characters", metavar="MIN,MAX", help="lengths of character n-grams; default: word pairs")
    flags.add_argument("--learning-rate", type=float, default=0.5, metavar="RATE", help="default: 0.5")
    flags.add_argument("--epochs", type=whole(1, 1000), default=50, metavar="N", help="default: 50")
    flags.add_argument("--threads", type=whole(1, 1024), default=2, metavar="N", help="default: 2")
    given = flags.parse_args()
    shortest, longest = map(int, given.characters.split(",")) if given.characters else (0, 0)
    dataset = open_dataset(given.data)
    test = dataset.splits["test"]
    texts = baselines.shown(test, dataset.encoding)
    began = time.monotonic()
    score = train(dataset, Setting((shortest, longest), given.learning_rate, given.epochs), given.threads)
    accuracy = score(texts, test.labels)
    print(f"test accuracy {100 * accuracy:.2f} %, {time.monotonic() - began:.1f} s to train and score")


def trained(dataset: Dataset) -> Iterator[tuple[str, Callable[[list[str], Any], float]]]:
    """Yield the name and the score of a few settings, trained on all cores; with many buckets, for many rows."""
    for epochs in (5, 25, 100) if len(dataset.splits["train"]) <= FEW else (5, 25):
        for characters in ((0, 0), (2, 6)):
            setting = Setting(characters, epochs=epochs, buckets=2_000_000)
            yield str(setting), train(dataset, setting, machine.cores())


def train(dataset: Dataset, setting: Setting, threads: int) -> Callable[[list[str], npt.NDArray[np.int32]], float]:
    """Train fastText on the train split; return a function from texts and their labels to the accuracy."""
    try:
        import fasttext
    except ModuleNotFoundError as error:
        here = shlex.join(["uv", "run", "--group", "comparison", "--with", "fasttext-wheel", *sys.argv])
        raise UserError("fastText is not installed", "the project does not depend on it", here) from error
    part = dataset.splits["train"]
    shown = baselines.shown(part, dataset.encoding)
    lines = [f"__label__{label} {_spaced(text)}\n" for label, text in zip(part.labels.tolist(), shown)]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "train.txt"
        order = np.random.default_rng(0).permutation(len(lines))
        path.write_text("".join(lines[row] for row in order), encoding="utf-8")
        model = fasttext.train_supervised(
            str(path),
            lr=setting.learning_rate,
            epoch=setting.epochs,
            dim=10,
            bucket=setting.buckets,
            wordNgrams=1 if setting.characters[1] else 2,
            minn=setting.characters[0],
            maxn=setting.characters[1],
            thread=threads,
            verbose=0,
        )

    def score(texts: list[str], labels: npt.NDArray[np.int32]) -> float:
        predicted = [int(found[0].rpartition("__")[2]) for found in model.predict(list(map(_spaced, texts)))[0]]
        return float(np.mean(labels == np.array(predicted)))

    return score


def _spaced(text: str) -> str:
    return re.sub(r"([^\w ])", r" \1 ", text)


if __name__ == "__main__":
    command.run(main)
