"""Probabilities of texts by networks that were trained without them."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from crepe_dist.elastic.training_subprocess import NO_REPORTS, train_in_subprocess
from crepe_dist.files.folders import temporary_folder
from crepe_dist.formatting import pluralize
from crepe_dist.inspecting.candidate_pool import CandidatePool
from crepe_dist.inspecting.corpus import Corpus, iter_chunks
from crepe_dist.model.calibration import TemperatureFitter, softmax
from crepe_dist.predicting.loading import load
from crepe_dist.predicting.predictor import Predictor

Floats = npt.NDArray[np.float64]


def predict_out_of_fold(
    corpus: Corpus,
    network: str,
    num_folds: int,
    seed: int,
    pool: CandidatePool | None,
    print_line: Callable[[str], None],
) -> tuple[Floats, Floats]:
    """Train a network on all folds but one, for each of them in turn, and score the one left out.

    Args:
        network: setting ``model.network``.
        pool: unlabelled texts, which every network scores.

    Returns:
        Calibrated probabilities of all texts, and mean probabilities of the unlabelled ones, float64 [n, classes].

    Raises:
        UserError: training failed.
    """
    classes = len(corpus.dataset.classes)
    fold = corpus.assign_folds(num_folds, seed)
    logits = np.zeros((len(corpus), classes), np.float32)
    others = np.zeros((len(pool) if pool else 0, classes))
    trained = 0
    for number in range(num_folds):
        started = time.monotonic()
        held = np.flatnonzero(fold == number)
        if not len(held):  # of few texts
            continue
        with temporary_folder() as folder:
            data = corpus.write(folder / "data", np.flatnonzero(fold != number), held)
            predictor = _train(data.folder, folder, network, seed)
            for some in iter_chunks(held):
                logits[some] = predictor.logits(corpus.documents.char_ids(some))
            if pool:
                for some in iter_chunks(np.arange(len(pool))):
                    others[some] += softmax(predictor.logits(pool.char_ids(some)), np.float64)
        trained += 1
        seconds = time.monotonic() - started
        print_line(f"fold {number + 1} of {num_folds}: {pluralize(len(held), 'text')} scored, {seconds:.0f} s")
    counts = TemperatureFitter()
    for some in iter_chunks(np.arange(len(corpus))):
        counts.add(logits[some], corpus.labels[some])
    probabilities = softmax(logits / np.float32(counts.calibration().temperature), np.float64)
    return probabilities, others / trained


def _train(data: Path, folder: Path, network: str, seed: int) -> Predictor:
    settings = {
        "data.source": str(data),
        "run_dir": str(folder / "run"),
        "model.network": network,
        "training.seed": seed,
        **NO_REPORTS,
    }
    train_in_subprocess(settings, folder)
    return load(folder / "run", device="cpu")
