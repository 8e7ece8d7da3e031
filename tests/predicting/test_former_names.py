"""Former names of the attributes of predictors, predictions and explanations."""

import pickle
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from crepe_dist.predicting.occlusion import Explanation
from crepe_dist.predicting.prediction import Prediction
from crepe_dist.predicting.predictor import Predictor, _unpickled
from crepe_dist.preparing.sources import ReadOptions

# The type checker does not know the former names.
PREDICTION: Any = Prediction("good", 0.75, (("good", 0.75), ("bad", 0.25)), 5, "", False, None, 2)
EXPLANATION: Any = Explanation("abc", "good", PREDICTION, range(1, 2), (0.0, 0.0, 0.0), ())


ENGINE: Any = SimpleNamespace(threads=1)
ENCODER: Any = SimpleNamespace()


def predictor(**attributes: Any) -> Any:
    return Predictor(ENGINE, ENCODER, ["good", "bad"], **attributes)


def test_predictors():
    model = predictor(metadata={"test_accuracy": 0.5}, level_thresholds=(0.5, 0.6))
    assert model.about is model.metadata
    assert model.sure == (0.5, 0.6)
    assert (model.several, model.measure) == (False, "accuracy")
    assert predictor(thresholds=np.array([0.5, 0.5])).several
    model.sure = (0.9, 0.9)
    assert model.level_thresholds == (0.9, 0.9)


def test_predictions():
    assert (PREDICTION.read, PREDICTION.problem, PREDICTION.characters_cut) == (5, "", 2)
    assert PREDICTION.share("bad") == 0.25
    assert pickle.loads(pickle.dumps(PREDICTION)) == PREDICTION


def test_explanations():
    assert EXPLANATION.cut == range(1, 2)
    assert EXPLANATION.spelled(str.upper).text == "ABC"


def test_former_names_are_no_fields():
    assert "read" not in Prediction._fields
    with pytest.raises(AttributeError):
        PREDICTION.shares  # noqa: B018


def test_pickles_with_a_former_name(monkeypatch):
    monkeypatch.setattr("crepe_dist.predicting.loading.open_files", lambda files, device: predictor())
    assert _unpickled({}, "cpu", 3, {"sure": (0.5, 0.7)}).level_thresholds == (0.5, 0.7)
    assert ENGINE.threads == 3


def test_options_of_an_earlier_version():
    saved = ReadOptions().to_dict()
    columns = saved["columns"]
    columns["needs_id"] = columns.pop("id_required")
    columns["remembered"] = columns.pop("preferred_texts")
    columns["like"] = columns.pop("reference_columns")
    assert ReadOptions.from_dict(saved).columns == ReadOptions().columns
