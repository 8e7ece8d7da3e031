#!/usr/bin/env python3
"""Train fastText on a prepared data set and print its test accuracy.

    python -m crepe_dist.prepare sample --out data/sample_full --validation 0.1 --mode full
    uv run --with fasttext-wheel benchmarks/fasttext_baseline.py data/sample_full
    uv run --with fasttext-wheel benchmarks/fasttext_baseline.py data/sample_full --characters 2,6 --learning-rate 0.25

Mode full distinguishes upper and lower case, which helps fastText. As its documentation advises, punctuation marks are
separate words. The vectors have 10 dimensions, as in the paper, and n-grams share 200,000 buckets.
"""

from __future__ import annotations

import argparse
import re
import tempfile
import time
from pathlib import Path

import baselines
import fasttext
import numpy as np

from crepe_dist import command
from crepe_dist.data.dataset import Dataset, open_dataset
from crepe_dist.settings import arguments
from crepe_dist.settings.limits import whole


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
    test = _texts(dataset, "test")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "train.txt"
        labelled = zip(dataset.parts["train"].labels.tolist(), _texts(dataset, "train"))
        path.write_text("".join(f"__label__{label} {text}\n" for label, text in labelled), encoding="utf-8")
        began = time.monotonic()
        model = fasttext.train_supervised(
            str(path),
            lr=given.learning_rate,
            epoch=given.epochs,
            dim=10,
            bucket=200_000,
            wordNgrams=1 if given.characters else 2,
            minn=shortest,
            maxn=longest,
            thread=given.threads,
            verbose=0,
        )
        predicted = [int(labels[0].rpartition("__")[2]) for labels in model.predict(test)[0]]
    seconds = time.monotonic() - began
    accuracy = np.mean(dataset.parts["test"].labels == np.array(predicted))
    print(f"test accuracy {100 * accuracy:.2f} %, {seconds:.1f} s to train and score")


def _texts(dataset: Dataset, part: str) -> list[str]:
    shown = baselines.shown(dataset.parts[part], dataset.encoding)
    return [re.sub(r"([^\w ])", r" \1 ", text) for text in shown]


if __name__ == "__main__":
    command.run(main)
