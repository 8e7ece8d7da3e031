"""Out-of-fold probabilities: each text is predicted by a network that was not trained on it."""

import time
from pathlib import Path

import numpy as np
import numpy.typing as npt

from crepe_dist.elastic.training_subprocess import train_in_subprocess
from crepe_dist.files.folders import temporary_folder
from crepe_dist.formatting import pluralize
from crepe_dist.inspecting.corpus import Corpus, iter_chunks
from crepe_dist.model.calibration import TemperatureFitter, softmax
from crepe_dist.predicting.loading import load
from crepe_dist.predicting.predictor import Predictor
from crepe_dist.settings.config import NO_REPORTS

Floats = npt.NDArray[np.float64]


def predict_out_of_fold(corpus: Corpus, network: str, num_folds: int, seed: int) -> Floats:
    """Train a network for each fold on all other folds, and predict the texts of the fold. Print a line per fold.

    Args:
        network: Setting ``model.network``.
        num_folds: Number of folds.
        seed: Random seed of the folds and of training.

    Returns:
        Calibrated probabilities of all texts, float64 [texts, classes].

    Raises:
        UserError: Training failed.
    """
    num_classes = len(corpus.dataset.classes)
    folds = corpus.assign_folds(num_folds, seed)
    logits = np.zeros((len(corpus), num_classes), np.float32)
    for number in range(num_folds):
        started = time.monotonic()
        held_out = np.flatnonzero(folds == number)
        if not len(held_out):  # With few texts, a fold may be empty.
            continue
        with temporary_folder() as folder:
            data = corpus.write(folder / "data", np.flatnonzero(folds != number), held_out)
            predictor = _train(data.folder, folder, network, seed)
            for numbers in iter_chunks(held_out):
                logits[numbers] = predictor.logits(corpus.documents.char_ids(numbers))
        seconds = time.monotonic() - started
        scored = f"fold {number + 1} of {num_folds}: {pluralize(len(held_out), 'text')} scored"
        print(f"{scored}, {seconds:.0f} s", flush=True)
    fitter = TemperatureFitter()
    for numbers in iter_chunks(np.arange(len(corpus))):
        fitter.add(logits[numbers], corpus.labels[numbers])
    return softmax(logits / np.float32(fitter.calibration().temperature), np.float64)


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
