#!/usr/bin/env python3
"""Plant wrong labels into prepared data, and measure how many of them `crepe inspect` finds.

    uv run benchmarks/label_errors.py data/sample
    uv run benchmarks/label_errors.py data/agnews_part --share 0.05 --model crepe

The wrong labels are drawn evenly from the other classes; the files stay as they are. Precision is the share of planted
labels in the list, and among its first entries, as many as were planted. Data have wrong labels of their own, so the
precision is higher in truth. Recall is the share of the planted labels that are in the list, and corrected is the share
of those in the list whose suggested label is the one that the data have.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import numpy as np

from crepe_dist import command
from crepe_dist.data.dataset import open_dataset
from crepe_dist.inspecting.corpus import Corpus
from crepe_dist.inspecting.inspection import inspect
from crepe_dist.inspecting.out_of_fold import out_of_fold
from crepe_dist.registry import NETWORKS
from crepe_dist.settings.fields import real, whole
from crepe_dist.settings.flags import Parser


def main() -> None:
    flags = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("data", type=Path, metavar="DIR", help="prepared data")
    flags.add_argument("--share", type=real(0, 0.5), default=0.05, help="share of the labels; default: 0.05")
    flags.add_argument("--model", choices=sorted(NETWORKS), default="ngrams", help="default: ngrams")
    flags.add_argument("--folds", type=whole(2, 100), default=5, metavar="K", help="default: 5")
    flags.add_argument("--seed", type=whole(0, 2**31), default=0, metavar="N", help="default: 0")
    given = flags.parse_args()
    corpus = Corpus(open_dataset(given.data))
    true = corpus.labels.copy()
    generator = np.random.default_rng(given.seed)
    planted = generator.choice(len(true), round(given.share * len(true)), replace=False)
    classes = len(corpus.dataset.classes)
    corpus.labels[planted] = (true[planted] + generator.integers(1, classes, len(planted))) % classes
    scored = out_of_fold(corpus, given.model, given.folds, given.seed, math.inf, [], print)
    found = inspect(corpus, scored)
    is_planted = np.zeros(len(true), bool)
    is_planted[planted] = True
    number_of = {corpus.row_of(number): number for number in range(len(corpus))}
    numbers = np.array([number_of[row["split"], row["row"]] for row in found.errors])
    hits = is_planted[numbers]
    corrected = [
        row["suggested"] == corpus.dataset.classes[true[number]]
        for row, number, hit in zip(found.errors, numbers, hits)
        if hit
    ]
    first = hits[: len(planted)]
    print(
        f"{len(true):,} texts, {len(planted):,} planted; {len(hits):,} found, {hits.sum():,} of them planted\n"
        f"precision {hits.mean():.3f}, of the first {len(first):,}: {first.mean():.3f}; "
        f"recall {hits.sum() / len(planted):.3f}; corrected {np.mean(corrected):.3f}\n"
        f"out-of-fold accuracy {found.accuracy:.4f}"
    )


if __name__ == "__main__":
    command.run(main)
