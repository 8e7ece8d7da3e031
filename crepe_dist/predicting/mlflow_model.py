"""Loader of ``export --format mlflow``: MLflow imports this module, whose name the model's folder gives."""

from __future__ import annotations

from typing import Any

import pandas as pd

from crepe_dist.predicting.frames import predict_frame
from crepe_dist.predicting.predictor import Predictor, load


class MlflowModel:
    """Model as MLflow calls it."""

    def __init__(self, predictor: Predictor) -> None:
        self._predictor = predictor

    def predict(self, frame: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """Classify the rows of a table; see ``predict_frame``."""
        return predict_frame(self._predictor, frame)


def _load_pyfunc(path: str) -> MlflowModel:
    return MlflowModel(load(path))
