"""Probabilities of texts by networks that were trained without them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from crepe_dist.errors import UserError
from crepe_dist.files import scratch
from crepe_dist.inspecting.corpus import CHUNK, Corpus
from crepe_dist.model.calibration import CalibrationCounts, softmax
from crepe_dist.predicting.predictor import Predictor, load
from crepe_dist.supervising.training_process import QUIET, train
from crepe_dist.wording import counted

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class OutOfFold:
    """Result of the folds that were trained in time.

    Attributes:
        numbers: texts that were scored, int64 [n], ascending.
        probabilities: their calibrated probabilities, float64 [n, classes].
        others: mean probabilities of the unlabelled texts, float64 [m, classes].
    """

    numbers: npt.NDArray[np.int64]
    probabilities: Floats
    others: Floats
    folds: int


def out_of_fold(
    corpus: Corpus,
    network: str,
    folds: int,
    seed: int,
    deadline: float,
    unlabelled: Sequence[str],
    say: Callable[[str], None],
) -> OutOfFold:
    """Train a network on all folds but one, for each of them in turn, and score the one left out.

    Args:
        network: setting ``model.network``.
        deadline: time by ``time.monotonic`` after which no fold is finished.
        unlabelled: texts that every network scores.

    Raises:
        UserError: training failed, or not one fold was finished in time.
    """
    classes = len(corpus.dataset.classes)
    fold = corpus.folds(folds, seed)
    logits = np.zeros((len(corpus), classes), np.float32)
    others = np.zeros((len(unlabelled), classes))
    trained: list[int] = []
    for number in range(folds):
        started = time.monotonic()
        held = np.flatnonzero(fold == number)
        if not len(held):
            continue
        with scratch() as folder:
            data = corpus.write(folder / "data", np.flatnonzero(fold != number), held)
            predictor = _trained(data.folder, folder, network, seed, deadline)
            if predictor is None:
                break
            for batch, codes in corpus.batches(held):
                logits[batch] = predictor.logits(codes)
            for start in range(0, len(unlabelled), CHUNK):
                codes = predictor.encoding.encode(unlabelled[start : start + CHUNK])
                others[start : start + len(codes)] += softmax(predictor.logits(codes), np.float64)
        trained.append(number)
        say(f"fold {number + 1} of {folds}: {counted(len(held), 'text')} scored, {time.monotonic() - started:.0f} s")
    if not trained:
        raise UserError(
            "the time was too short for the first fold",
            "each fold is a training on most of the texts",
            "give more --minutes",
        )
    numbers = np.flatnonzero(np.isin(fold, trained))
    counts = CalibrationCounts()
    for start in range(0, len(numbers), CHUNK):
        batch = numbers[start : start + CHUNK]
        counts.add(logits[batch], corpus.labels[batch])
    temperature = counts.fitted().temperature
    probabilities = softmax(logits[numbers] / np.float32(temperature), np.float64)
    return OutOfFold(numbers, probabilities, others / len(trained), len(trained))


def _trained(data: Path, folder: Path, network: str, seed: int, deadline: float) -> Predictor | None:
    """Train on a data set folder; return ``None`` if the time is over."""
    settings = {
        "data.source": str(data),
        "run_dir": str(folder / "run"),
        "model.network": network,
        "training.seed": seed,
        **QUIET,
    }
    if not train(settings, folder, seconds=max(0.0, deadline - time.monotonic())):
        return None
    return load(folder / "run", device="cpu")
