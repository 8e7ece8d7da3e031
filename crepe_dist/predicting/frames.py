"""Predictions for tables in memory: pandas data frames, as engines for tables pass them to functions."""

from __future__ import annotations

import json
import math
from typing import Any

import pandas as pd

from crepe_dist.predicting.prediction import Prediction
from crepe_dist.predicting.predictor import Predictor
from crepe_dist.preparing.frames import is_missing, text_column

COLUMNS = {  # and their types
    "predicted_class": "object",
    "predicted_probability": "float64",
    "characters_cut": "int64",
    "problem": "object",
}
LABELS = "predicted_labels"  # of models that give several: a JSON list


def predict_frame(predictor: Predictor, frame: pd.DataFrame) -> pd.DataFrame:
    """Classify the rows of a table; return the columns that ``predict --format csv`` adds to a file's, and its index.

    The columns of the text are chosen as those of a file. A row that cannot be classified, such as one without a text,
    has the reason in ``problem``, no class and the probability NaN.

    Raises:
        UserError: the columns of the text cannot be chosen, or hold something else than texts.
    """
    texts = ["" if is_missing(text) else text for text in text_column(frame, predictor.composition.columns)]
    rows = [_row(prediction) for prediction in predictor.predict(texts)]
    answers = pd.DataFrame(rows, columns=[*COLUMNS, LABELS], index=frame.index).astype(COLUMNS)
    return answers if predictor.thresholds is not None else answers.drop(columns=LABELS)


def _row(prediction: Prediction) -> list[Any]:
    if prediction.problem:
        return ["", math.nan, 0, prediction.problem, "[]"]
    labels = json.dumps(prediction.labels, ensure_ascii=False)
    label = "" if prediction.rejected else prediction.label
    return [label, prediction.probability, prediction.characters_cut, "", labels]
