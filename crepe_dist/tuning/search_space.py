"""The settings that a search varies, and their limits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from crepe_dist.data.dataset import Dataset
from crepe_dist.data.targets import SEVERAL
from crepe_dist.settings.data_options import DataOptions
from crepe_dist.settings.model_options import ModelOptions
from crepe_dist.settings.training_options import OptimizerOptions, default_epochs

if TYPE_CHECKING:
    import optuna

NETWORK, RATE, EPOCHS = "model.network", "optimizer.learning_rate", "training.epochs"
LONGEST, DROPOUT, WIDTH = "model.longest", "model.dropout", "model.width"
PATIENCE = 3  # epochs
DEFAULTS = 1  # number of the trial with the defaults, after that of the fastest network


def first(data: Dataset) -> tuple[Mapping[str, Any], ...]:
    """Return the values of the first trials.

    The table of n-grams is first: it trains fast, so that even a short search has a result. Optuna notes the defaults
    for the second one, which trains without any setting of its own.
    """
    size = data.encoding.feature_len, DataOptions.batch_size
    several = data.labelled == SEVERAL
    defaults = {
        NETWORK: ModelOptions.network,
        RATE: OptimizerOptions.learning_rate,
        EPOCHS: default_epochs(ModelOptions.network, len(data.splits["train"]), *size, has_several_labels=several),
        LONGEST: ModelOptions.longest,
        DROPOUT: 0.2,
        WIDTH: ModelOptions.width,
    }
    few_rows = {NETWORK: "ngrams", RATE: 0.003, EPOCHS: 10, LONGEST: 6}
    return few_rows, defaults, {**defaults, RATE: 0.002, EPOCHS: 10}


def suggest(trial: optuna.Trial) -> dict[str, Any]:
    """Choose the settings of a trial, by their dotted names; none for the trial ``DEFAULTS``."""
    settings: dict[str, Any] = {
        NETWORK: trial.suggest_categorical(NETWORK, ["crepe", "ngrams"]),
        RATE: trial.suggest_float(RATE, 2e-4, 2e-2, log=True),
        EPOCHS: trial.suggest_int(EPOCHS, 2, 20, log=True),
        LONGEST: trial.suggest_int(LONGEST, 3, 7),
    }
    if settings[NETWORK] == "crepe":
        settings[DROPOUT] = trial.suggest_float(DROPOUT, 0.0, 0.5, step=0.1)
        settings[WIDTH] = trial.suggest_categorical(WIDTH, [64, 128, 192])
    return {} if trial.number == DEFAULTS else {**settings, "training.patience": PATIENCE}
