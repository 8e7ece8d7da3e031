"""crepe_dist.fit: tables, files and prepared folders, options by name, scores, and saved models."""

import copy
import pickle
import shutil
import tempfile
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pandas as pd
import pytest

import crepe_dist
from crepe_dist.distributed.launch import LauncherEnv
from crepe_dist.errors import UserError
from crepe_dist.preparing.from_python import translate_for_python
from tests.conftest import needs_kernels, run
from tests.helpers.programs import program

WORDS = {"bill": "the invoice was charged", "ship": "the parcel is late"}
QUICK: Any = {"model": "ngrams", "buckets": 4096, "epochs": np.int64(6), "learning_rate": 0.01}


def table(rows: int = 300) -> Any:
    topics = [list(WORDS)[row * 7 % 5 % 2] for row in range(rows)]
    return pd.DataFrame(
        {"topic": topics, "message": [f"{WORDS[each]}, number {row}" for row, each in enumerate(topics)]}
    )


@pytest.fixture(autouse=True)
def _place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("temporary")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(tempfile, "tempdir", str(folder))
        made = crepe_dist.fit(table(), "topic", "message", **QUICK)
    assert list(folder.iterdir()) == []
    return made


@needs_kernels
def test_a_model_scores_predicts_and_can_be_saved(model, tmp_path):
    new = table(400)[300:]
    assert model.score(new) == 1
    assert model.score(new.assign(topic=["bill", *new["topic"][1:]])) == pytest.approx(0.99, abs=0.011)
    assert model.predict(["my invoice"])[0].label == "bill"
    model.save(tmp_path / "a" / "model")
    again = crepe_dist.load(tmp_path / "a" / "model")
    assert again.predict(new) == model.predict(new)
    assert again.score({"message": list(new["message"]), "topic": list(new["topic"])}) == 1
    (tmp_path / "file.txt").touch()
    with pytest.raises(UserError, match=r"file\.txt cannot be created"):
        model.save("file.txt")


@needs_kernels
@pytest.mark.parametrize(
    ("given", "label", "message"),
    [
        (table(20).assign(topic="else"), None, "none of the 20 rows (.|\n)*'else' is not a class of the model"),
        ({"message": ["a", "b"], "topic": ["bill"]}, None, "differ in length(.|\n)*give a label for every text"),
    ],
)
def test_a_table_that_cannot_be_scored(model, given, label, message):
    with pytest.raises(UserError, match=message):
        model.score(given, label)


@needs_kernels
def test_rows_that_cannot_be_scored_are_left_out_and_counted(model):
    new = table(400)[300:]
    new.iloc[0, new.columns.get_loc("message")] = None
    new.iloc[1:3, new.columns.get_loc("topic")] = None
    new.iloc[3, new.columns.get_loc("topic")] = "else"
    with pytest.warns(UserWarning, match=r"4 of 100 rows are not scored: .*no label \(2\).*'else'") as caught:
        assert model.score(new) == 1
    assert caught[0].filename == __file__
    assert "empty text (1)" in str(caught[0].message)
    assert "unknown label (1)" in str(caught[0].message)


@needs_kernels
def test_a_file_and_a_table_give_the_same_model(model, tmp_path):
    table().to_json(tmp_path / "messages.jsonl", orient="records", lines=True)
    made = crepe_dist.fit("messages.jsonl", label="topic", text="message", **QUICK)
    assert made.metadata["data"]["name"] == "messages"
    assert made.predict(table(20)) == model.predict(table(20))
    assert [each.name for each in tmp_path.iterdir()] == ["messages.jsonl"]
    crepe_dist.fit("messages.jsonl", run_dir="kept", **QUICK)
    assert (tmp_path / "kept" / "report.html").is_file()


@needs_kernels
def test_a_prepared_folder_is_trained_on_as_by_train(tmp_path, capsys):
    crepe_dist.prepare(table(), "data", label="topic", text="message")
    dotted: Any = {"training.seed": 3}
    made = crepe_dist.fit(Path("data"), **QUICK, **dotted)
    assert made.path.parts[0] == "runs"
    assert (made.path.parent.parent / "config.yaml").read_text().count("seed: 3") == 1
    capsys.readouterr()
    assert crepe_dist.fit("data", seed=3, **QUICK).path == made.path
    assert "is finished" in capsys.readouterr().out
    assert crepe_dist.fit("data", run_dir=tmp_path / "here", **QUICK).path.parent.parent == tmp_path / "here"
    with pytest.raises(UserError, match="no option labels for a prepared folder"):
        crepe_dist.fit("data", labels="multilabel")


@needs_kernels
@pytest.mark.parametrize("kind", ["lists", "columns"])
def test_several_labels(kind, tmp_path):
    frame = table().assign(topic=[[each] * (row % 3 > 0) for row, each in enumerate(table()["topic"])])
    frame["message"] = [text if row % 3 else "nothing at all" for row, text in enumerate(frame["message"])]
    options: Any = {"label": "topic"}
    if kind == "columns":
        options = {"label_columns": ("bill", "ship")}
        for name in WORDS:
            frame[name] = [name in labels for labels in frame["topic"]]
    made = crepe_dist.fit(frame, text="message", labels="multilabel", **{**QUICK, "epochs": 10}, **options)
    assert made.score(frame) > 0.95
    made.save("model")
    assert crepe_dist.load("model").score(frame) == made.score(frame)


@pytest.mark.parametrize(
    ("given", "options", "message"),
    [
        (table(20), {"epoch": 3}, "fit has no option epoch\n  do:  did you mean epochs?"),
        (table(20), {"epochs": -1}, "training.epochs is -1"),
        (table(20), {"label": "nope"}, "has no column 'nope'"),
        (["good", "bad"], {"label": ["x", "y"]}, "cannot be of type list(.|\n)*as one table"),
    ],
)
def test_mistakes(given, options, message):
    with pytest.raises(UserError, match=message):
        crepe_dist.fit(given, **options)


def test_too_few_rows_are_explained_in_arguments():
    with pytest.raises(UserError, match="no test split") as error:
        crepe_dist.fit(table(4)[1:])
    assert error.value.remedy == "prepare the data with test=FILE or test=0.34"


@needs_kernels
def test_two_processes_train_on_a_prepared_folder(monkeypatch):
    crepe_dist.prepare(table(), "data", label="topic", text="message")
    line = program("helpers/fit_prepared.py", processes=2)
    assert run(line, Path.cwd()).count("label bill") == 2
    monkeypatch.setattr("crepe_dist.api.read_launcher_env", lambda: LauncherEnv("horovodrun", 0, 2))
    with pytest.raises(UserError, match="2 processes cannot prepare the same data"):
        crepe_dist.fit(table())


@needs_kernels
def test_a_model_can_be_pickled_and_copied(model, tmp_path):
    new = table(400)[300:]
    joblib.dump(model, tmp_path / "model.joblib")
    copies = [copy.deepcopy(model), pickle.loads(pickle.dumps(model)), joblib.load(tmp_path / "model.joblib")]
    for each in copies:
        assert each.predict(new) == model.predict(new)
        assert (repr(each), each.score(new)) == (repr(model), 1)
    limited = crepe_dist.load(saved(model, tmp_path), min_probability=0.875, threads=1)
    stored = pickle.dumps(limited)
    shutil.rmtree(tmp_path / "saved")
    copied = pickle.loads(stored)
    assert (copied.min_probability, copied.engine.threads, copied.predict(["my invoice"])[0].label) == (
        0.875,
        1,
        "bill",
    )


def saved(model, folder):
    model.save(folder / "saved")
    return folder / "saved"


@needs_kernels
def test_probabilities_are_in_the_order_of_the_classes(model):
    found = model.predict_proba(["my invoice", "", "a parcel"])
    assert found.shape == (3, 2)
    assert model.classes_[found.argmax(axis=1)[[0, 2]]].tolist() == ["bill", "ship"]
    assert np.isnan(found[1]).all()
    np.testing.assert_allclose(found[[0, 2]].sum(axis=1), 1, rtol=1e-6)
    assert model.predict_proba([]).shape == (0, 2)


@needs_kernels
@pytest.mark.parametrize(
    ("labels", "options"),
    [
        (np.array([7, -3]), {}),
        ([True, False], {}),
        ([np.bool_(True), np.bool_(False)], {}),
        (pd.array([1, 0], "Int64"), {}),
        ([0.5, 2.0], {}),
        ([[1, 2], [2]], {"labels": "multilabel"}),
    ],
)
def test_labels_keep_their_type(labels, options, tmp_path):
    texts = [f"{list(WORDS.values())[row % 2]}, number {row}" for row in range(100)]
    given = pd.DataFrame({"text": texts, "label": [labels[row % 2] for row in range(100)]})
    made = crepe_dist.fit(given, verbose=0, **{**QUICK, **options})
    wanted = list(given["label"])
    for each in (made, crepe_dist.load(saved(made, tmp_path)), copy.deepcopy(made)):
        found = each.predict(texts)
        if options:
            assert [sorted(prediction.labels or ()) for prediction in found] == wanted
            assert each.classes_.tolist() == [1, 2]
        else:
            assert [prediction.label for prediction in found] == wanted
            assert (each.classes_[each.predict_proba(texts).argmax(axis=1)] == wanted).all()
            assert found[0].probability_of(wanted[0]) > 0.5
            assert each.explain(texts[0], wanted[0]) == each.explain(texts[0])
        assert each.score(given) == 1


@needs_kernels
def test_it_prints_as_much_as_was_asked_for(capsys, tmp_path):
    rare = table(300)
    rare.loc[rare.index[-12:], "topic"] = "rare"
    rare.loc[rare.index[:3], "message"] = ""
    printed = {}
    for verbose in (0, 1, 2):
        crepe_dist.fit(rare, "topic", "message", verbose=verbose, **{**QUICK, "epochs": 2})
        printed[verbose] = capsys.readouterr().out.splitlines()
    assert printed[0] == []
    for lines in (printed[1], printed[2]):
        assert lines[1] == "dropped   3 rows: empty text (3)"
        assert any(line.startswith("note: ") and "never predicted" in line for line in lines)
        assert not any(tempfile.gettempdir() in line for line in lines)
    starts = {line.split()[0] for line in printed[1]}
    assert starts == {"prepared", "dropped", "epoch", "test", "note:", "why:", "do:"}
    assert len(printed[2]) > len(printed[1])


@needs_kernels
def test_warnings_about_the_data_are_printed_with_arguments(capsys):
    data = table(300)
    data.loc[data.index[:9], "message"] = [f"<b>words</b> {number}" for number in range(9)]
    crepe_dist.fit(data, "topic", "message", verbose=1, **{**QUICK, "epochs": 1})
    lines = capsys.readouterr().out.splitlines()
    assert any(line.strip().startswith("do:  strip_html=True removes HTML") for line in lines)
    told = translate_for_python(UserError("--labels soft, --dedupe near", "--strip-html"))
    assert (told.what, told.why) == ('labels="soft", dedupe="near"', "strip_html=True")
    told = translate_for_python(
        UserError("--case fold, --fresh", "--encoding cp1252 or --encoding=latin-1", "--device cpu with --label")
    )
    assert (told.what, told.why) == ('case="fold", fresh=True', 'encoding="cp1252" or encoding=latin-1')
    assert told.remedy == 'device="cpu" with label='


@needs_kernels
def test_groups_stay_together(tmp_path, capsys):
    frame = table(120).assign(customer=[row // 4 for row in range(120)])
    model = crepe_dist.fit(frame, "topic", "message", group="customer", test=0.25, verbose=1, **{**QUICK, "epochs": 2})
    assert "groups    30 groups by customer; test 26.7 % of the rows instead of 25.0 %" in capsys.readouterr().out
    assert model.predict(["my invoice"])[0].label == "bill"
    assert model.score(table(40)) > 0.9  # A table that is scored needs no groups.
    with pytest.raises(UserError, match="no column 'author'"):
        crepe_dist.fit(frame, "topic", "message", group=["customer", "author"], verbose=0, **QUICK)
