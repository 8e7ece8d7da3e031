"""Whole documents in windows."""

import numpy as np
import pandas as pd
import pytest

import crepe_dist
from crepe_dist.errors import UserError
from crepe_dist.native import library
from tests.exporting.test_export import ENCODINGS, FEATURE_LEN, make

TEXTS = ["zig", "", "qua " * 20, "É ß zig" * 30, "x", "vex " * 2000, "б" * 300, "a zig " * 50]


@pytest.fixture(params=["crepe", "ngrams"])
def model(request, tmp_path):
    return make(tmp_path, request.param, ENCODINGS["paper"])


def test_the_mean_logits_of_windows_answer_by_their_known_characters(model, monkeypatch):
    predictor = crepe_dist.load(model)
    whole, ends = predictor.predict(TEXTS, windows=True), predictor.predict(TEXTS)
    assert [answer for answer in whole if answer not in ends] == [whole[row] for row in (3, 5, 6, 7)]
    assert not any(answer.characters_truncated for answer in whole)
    for text in (TEXTS[5], TEXTS[7], "zig vex" * 20 + " " * 20 * FEATURE_LEN + "b"):
        (answer,) = predictor.predict([text], windows=True)
        starts = np.linspace(0, len(text) - FEATURE_LEN, -(-len(text) // FEATURE_LEN)).astype(int)
        windows = [text[::-1][start : start + FEATURE_LEN][::-1] for start in starts]
        known = [len(window.replace(" ", "")) for window in windows]
        logits = np.average(predictor.logits(predictor.encoding.encode(windows)), axis=0, weights=known)[None]
        shares = predictor.probabilities(logits)[0]
        assert [answer.probability_of(name) for name in predictor.classes] == pytest.approx(shares.tolist(), abs=1e-6)
        assert answer.characters_read == len(text.replace(" ", ""))
    monkeypatch.setattr("crepe_dist.predicting.predictor.BATCH_SIZE", 3)
    single = [predictor.predict([text], windows=True)[0] for text in TEXTS]
    if library.find()[0] is not None:
        assert single == whole
    else:  # The rounding errors of NumPy's matrix products depend on the number of texts in a batch.
        assert [answer.label for answer in single] == [answer.label for answer in whole]
        for name in predictor.classes:
            expected = [answer.probability_of(name) for answer in whole]
            assert [answer.probability_of(name) for answer in single] == pytest.approx(expected, abs=1e-6, nan_ok=True)


def test_predict_reads_whole_documents(model, tmp_path, printed_by):
    pd.DataFrame({"text": TEXTS}).to_csv(tmp_path / "in.csv", index=False)
    with pytest.raises(UserError, match="2 of 8 rows could not be classified"):
        printed_by("predict", model, "--file", tmp_path / "in.csv", "--windows", "--out", tmp_path / "out.csv")
    expected = [
        np.nan if each.error else each.probability for each in crepe_dist.load(model).predict(TEXTS, windows=True)
    ]
    found = pd.read_csv(tmp_path / "out.csv")["predicted_probability"].tolist()
    assert found == pytest.approx(expected, abs=1e-6, nan_ok=True)
