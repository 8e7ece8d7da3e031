"""Classification of data frames, as engines for clusters call it."""

import csv
import json
import pickle
import socket
import threading

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

import crepe_dist
from crepe_dist.errors import UserError
from crepe_dist.predicting import dataframe
from crepe_dist.predicting.dataframe import FramePredictor, predict_frame
from tests.conftest import FEATURE_LEN, needs_kernels
from tests.exporting.test_export import CLASSES, ENCODINGS, make

TEXTS = ["quaqua abc", None, " ", "zig " * FEATURE_LEN, "vex\nvex"]


@pytest.fixture
def frame() -> pd.DataFrame:
    return pd.DataFrame({"id": range(5), "text": TEXTS, "when": pd.Timestamp("2026-01-01")}, index=[7, 7, 1, 0, 5])


@needs_kernels
def test_columns_are_those_of_predict(quick_run, frame, tmp_path, monkeypatch, printed_by):
    frame.to_csv(tmp_path / "a.csv", index=False)
    flags = ("--file", "a.csv", "--out", "b.csv", "--top", 2)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="2 of 5 rows"):  # they have no text
        printed_by("predict", quick_run, *flags)
    with (tmp_path / "b.csv").open(newline="") as stream:
        wanted = list(csv.DictReader(stream))
    got = FramePredictor(quick_run, top=2)(frame)
    pd.testing.assert_frame_equal(got[frame.columns], frame)
    assert list(got) == list(wanted[0])
    for have, want in zip(got.to_dict("records"), wanted):
        assert bool(have["problem"]) == bool(want["problem"])
        for rank in ("", "_2"):
            assert have[f"predicted_class{rank}"] == want[f"predicted_class{rank}"]
            probability = want[f"predicted_probability{rank}"]
            assert have[f"predicted_probability{rank}"] == pytest.approx(
                float(probability or "nan"), abs=1e-6, nan_ok=True
            )
        assert have["characters_cut"] == int(want["characters_cut"] or 0)
    assert got["characters_cut"].tolist()[3] > 0


@needs_kernels
@pytest.mark.parametrize("kind", [pa.Table, pa.RecordBatch])
def test_arrow_gives_arrow(quick_run, frame, kind):
    given = kind.from_pandas(frame, preserve_index=False)
    got = FramePredictor(quick_run)(given)
    assert type(got) is kind
    assert got.select(frame.columns.tolist()).equals(given)
    answers = FramePredictor(quick_run)(frame).drop(columns=frame.columns)
    assert [str(field.type) for field in got.schema][3:] == ["string", "double", "int64", "string"]
    pd.testing.assert_frame_equal(got.to_pandas()[answers.columns], answers.reset_index(drop=True))
    assert FramePredictor(quick_run)(given.slice(0, 0)).schema.equals(got.schema)  # without rows, too


def test_several_labels(tmp_path):
    predictor = crepe_dist.load(make(tmp_path, "ngrams", ENCODINGS["paper"]), device="cpu")
    predictor.thresholds = np.array([0.0, 0.0, 2.0])
    answers = predict_frame(predictor, pd.DataFrame({"text": ["zig", ""]}))
    assert {*json.loads(answers["predicted_labels"][0])} == {*CLASSES[:2]}
    assert answers["predicted_labels"][1] == "[]"


@needs_kernels
def test_only_the_name_and_the_options_are_pickled(quick_run, frame):
    predict_frame = FramePredictor(quick_run, top=2)
    pickled = pickle.dumps(predict_frame)
    assert len(pickled) < 500
    pd.testing.assert_frame_equal(pickle.loads(pickled)(frame), predict_frame(frame))


@needs_kernels
def test_a_process_opens_the_model_once_for_all_its_threads(quick_run, frame, monkeypatch):
    dataframe._load_cached.cache_clear()
    opened, original = [], dataframe.load

    def load(*args, **options):
        opened.append(args)
        return original(*args, **options)

    monkeypatch.setattr(dataframe, "load", load)
    want = FramePredictor(quick_run)(frame)
    got: list[pd.DataFrame] = []
    threads = [threading.Thread(target=lambda: got.append(FramePredictor(quick_run)(frame))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(opened) == 1
    assert len(got) == 4
    for each in got:
        pd.testing.assert_frame_equal(each, want)


@needs_kernels
@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (pd.DataFrame({"text": ["a"], "problem": ["b"]}), "already has a column 'problem'"),
        (pd.DataFrame({"a": ["x"], "b": ["y"]}), 'which column is the text?(.|\n)*the column, as in text="body"'),
        (pa.table([["a"], ["b"]], ["text", "text"]), "same name"),
        ({"text": np.array(["a"])}, "the frame is of type dict(.|\n)*batch_format='pyarrow'"),
    ],
)
def test_bad_frames(quick_run, frame, message):
    with pytest.raises(UserError, match=message) as caught:
        FramePredictor(quick_run)(frame)
    pickle.dumps(caught.value)  # engines carry errors to the driver


def test_a_model_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match=f"nowhere does not exist on {socket.gethostname()}"):
        crepe_dist.FramePredictor(tmp_path / "nowhere")(pd.DataFrame({"text": ["a"]}))
