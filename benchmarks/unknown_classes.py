#!/usr/bin/env python3
"""Measure how well a network tells texts of a class that it has never seen from those of its own classes.

    uv run benchmarks/unknown_classes.py data/sample
    uv run benchmarks/unknown_classes.py data/sample --model crepe

Each class is left out of the training and validation splits in turn. The network then scores the whole test split, in
which that class is unknown. Prints, for each of four scores of a text, the AUROC (1: every known text scores above
every unknown one; 0.5: chance), and the share of unknown texts that are rejected by the threshold below which 5 % of
the validation texts lie, with the share of known test texts that are answered and their accuracy.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import numpy.typing as npt
import subset

from crepe_dist import command
from crepe_dist.data.dataset import Dataset, Split, open_dataset
from crepe_dist.predicting.predictor import Predictor, load
from crepe_dist.registry import NETWORKS
from crepe_dist.settings.flags import Parser
from crepe_dist.supervising.training_process import failure, training

ANSWERED = 0.95
BATCH = 512
Floats = npt.NDArray[np.float64]


def main() -> None:
    flags = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("data", type=Path, metavar="DIR", help="prepared data with a validation split")
    flags.add_argument("--model", choices=sorted(NETWORKS), default="ngrams", help="default: ngrams")
    flags.add_argument("--classes", type=int, metavar="N", help="leave out only the first N classes")
    given = flags.parse_args()
    dataset = open_dataset(given.data)
    print("| left out | score | AUROC | unknown texts rejected | known texts answered | their accuracy |")
    print("|---|---|---:|---:|---:|---:|")
    found: dict[str, list[tuple[float, ...]]] = {}
    for index, name in enumerate(dataset.classes[: given.classes]):
        for score, row in _measured(dataset, index, given.model).items():
            found.setdefault(score, []).append(row)
            _show(name, score, row)
    for score, rows in found.items():
        _show("**mean**", score, tuple(np.mean(rows, axis=0)))


def _show(name: str, score: str, row: tuple[float, ...]) -> None:
    auroc, *shares = row
    print(f"| {name} | {score} | {auroc:.3f} | {' | '.join(f'{100 * share:.1f} %' for share in shares)} |", flush=True)


def _measured(dataset: Dataset, index: int, network: str) -> dict[str, tuple[float, ...]]:
    """Train without a class; return AUROC, share rejected, share answered and its accuracy, by score."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        known = subset.without_class(dataset, folder / "data", index)
        settings = {"data.source": str(known.folder), "run_dir": str(folder / "run"), "model.network": network,
                    "logging.report": False, "logging.tensorboard": False}  # fmt: skip
        with training(settings, folder) as process:
            if code := process.wait():
                raise failure(folder, code)
        predictor = load(folder / "run")
        valid = _logits(predictor, known.splits["validation"])
        logits = _logits(predictor, dataset.splits["test"])
    labels = np.asarray(dataset.splits["test"].labels)
    is_known = labels != index
    right = (logits.argmax(axis=1) + (logits.argmax(axis=1) >= index)) == labels
    rows = {}
    for score, (own, every) in zip(_scores(valid), zip(_scores(valid).values(), _scores(logits).values())):
        answered = every >= np.quantile(own, 1 - ANSWERED)
        shares = (~answered[~is_known]).mean(), answered[is_known].mean(), right[answered & is_known].mean()
        rows[score] = (_auroc(every[is_known], every[~is_known]), *map(float, shares))
    return rows


def _logits(predictor: Predictor, split: Split) -> Floats:
    """Compute the logits of a split at the temperature of the checkpoint, float64 [n, classes]."""
    found = [logits for _, _, logits in predictor.engine.scored(split, BATCH)]
    return np.concatenate(found).astype(np.float64)


def _scores(logits: Floats) -> dict[str, Floats]:
    """Compute scores that should be higher for known classes, float64 [n] each."""
    largest = logits.max(axis=1, keepdims=True)
    powers = np.exp(logits - largest)
    probabilities = powers / powers.sum(axis=1, keepdims=True)
    ordered = np.sort(probabilities, axis=1)
    return {
        "maximum probability": ordered[:, -1],
        "margin of the first two": ordered[:, -1] - ordered[:, -2],
        "negative entropy": (probabilities * np.log(np.maximum(probabilities, 1e-300))).sum(axis=1),
        "log-sum of the logits (energy)": np.log(powers.sum(axis=1)) + largest[:, 0],
    }


def _auroc(known: Floats, unknown: Floats) -> float:
    """Compute the probability that a known text scores above an unknown one; ties count half."""
    _, places, counts = np.unique(np.concatenate([known, unknown]), return_inverse=True, return_counts=True)
    ranks = np.cumsum(counts) - (counts - 1) / 2
    above = ranks[places[: len(known)]].sum() - len(known) * (len(known) + 1) / 2
    return float(above / (len(known) * len(unknown)))


if __name__ == "__main__":
    command.run(main)
