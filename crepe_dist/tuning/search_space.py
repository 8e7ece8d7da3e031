"""The settings that a search varies, and their limits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from crepe_dist.settings.model_options import ModelOptions
from crepe_dist.settings.training_options import EPOCHS, OptimizerOptions

if TYPE_CHECKING:
    import optuna

NETWORK, RATE, EPOCHS_NAME = "model.network", "optimizer.learning_rate", "training.epochs"
LONGEST, DROPOUT, WIDTH = "model.longest", "model.dropout", "model.width"
# The defaults. Optuna notes these values for the first trial, which trains without any setting of its own.
FIRST: Mapping[str, Any] = {
    NETWORK: ModelOptions.network,
    RATE: OptimizerOptions.learning_rate,
    EPOCHS_NAME: EPOCHS,
    LONGEST: ModelOptions.longest,
    DROPOUT: 0.2,
    WIDTH: ModelOptions.width,
}
# Settings that are often better with few rows, and often faster; they are tried next.
NEXT = (
    {NETWORK: "ngrams", RATE: 0.003, EPOCHS_NAME: 10, LONGEST: 6},
    {**FIRST, RATE: 0.002, EPOCHS_NAME: 10},
)
PATIENCE = 3  # epochs


def suggest(trial: optuna.Trial) -> dict[str, Any]:
    """Choose the settings of a trial, by their dotted names; none for the first one, which trains with the defaults."""
    settings: dict[str, Any] = {
        NETWORK: trial.suggest_categorical(NETWORK, ["crepe", "ngrams"]),
        RATE: trial.suggest_float(RATE, 2e-4, 2e-2, log=True),
        EPOCHS_NAME: trial.suggest_int(EPOCHS_NAME, 2, 20, log=True),
        LONGEST: trial.suggest_int(LONGEST, 3, 7),
    }
    if settings[NETWORK] == "crepe":
        settings[DROPOUT] = trial.suggest_float(DROPOUT, 0.0, 0.5, step=0.1)
        settings[WIDTH] = trial.suggest_categorical(WIDTH, [64, 128, 192])
    return {} if trial.number == 0 else {**settings, "training.patience": PATIENCE}
