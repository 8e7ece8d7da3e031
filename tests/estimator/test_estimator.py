"""``crepe_dist.CrepeClassifier``: scikit-learn's conventions, copies, invalid input, and training in subprocesses."""

import copy
import io
import sys
import tempfile
from contextlib import contextmanager, redirect_stdout
from types import SimpleNamespace
from typing import Any

import joblib
import numpy as np
import pandas as pd
import pytest
import yaml
from sklearn import config_context
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.utils.estimator_checks import check_estimator
from sklearn.utils.validation import validate_data

import crepe_dist
import crepe_dist.train
from crepe_dist import CrepeClassifier
from crepe_dist.data.dataset import open_dataset
from crepe_dist.errors import UserError
from crepe_dist.estimator import classifier, fitting
from crepe_dist.model.calibration import Calibration
from crepe_dist.predicting.input_reader import InvalidInput
from crepe_dist.settings.config import group_settings, parse
from tests.conftest import needs_kernels

SMALL = {"model.buckets": 4096, "model.embedding_rows": 1024, "model.width": 16, "model.blocks": 1}
TEXTS = [f"{'a fine day' if row % 2 else 'awful weather'}, number {row}" for row in range(100)]
LABELS = np.array(["good" if row % 2 else "bad" for row in range(100)])


def small(**given):
    return CrepeClassifier(**{"epochs": 2, "learning_rate": 0.01, "settings": SMALL, **given})


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    """An estimator that was trained in another process. The process has left no files."""
    folder = tmp_path_factory.mktemp("temporary")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tempfile, "tempdir", str(folder))
        with redirect_stdout(io.StringIO()) as printed:
            estimator = small(verbose=1).fit(TEXTS, LABELS)
    assert list(folder.iterdir()) == []
    lines = printed.getvalue().splitlines()
    assert len(lines) == 2
    assert all(line.startswith("epoch ") and "test" not in line for line in lines)
    return estimator


@contextmanager
def _in_this_process(settings, folder, processes=1):
    """Train like ``training``, but in this process, because the start of a process takes seconds."""
    (folder / "settings.yaml").write_text(yaml.safe_dump(group_settings(settings)))
    crepe_dist.train.train(parse(["--config", str(folder / "settings.yaml")]))
    yield SimpleNamespace(wait=lambda: 0)


@pytest.fixture
def fast(monkeypatch):
    monkeypatch.setattr(fitting, "training_subprocess", _in_this_process)


@needs_kernels
def test_fit_and_predict(fitted):
    assert fitted.classes_.tolist() == ["bad", "good"]
    assert fitted.classes_.dtype == LABELS.dtype
    assert fitted.score(TEXTS, LABELS) == 1
    assert fitted.predict(["a fine day", "awful weather"]).tolist() == ["good", "bad"]
    probabilities = fitted.predict_proba([*TEXTS, ""])
    assert probabilities.shape == (101, 2)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1)
    assert sorted(path.rpartition(".")[2] for path in fitted.model_) == ["json", "params"]


@needs_kernels
def test_copies_answer_alike(fitted, tmp_path):
    expected = fitted.predict_proba(TEXTS)
    joblib.dump(fitted, tmp_path / "model.joblib")
    for each in (copy.deepcopy(fitted), joblib.load(tmp_path / "model.joblib")):
        np.testing.assert_array_equal(each.predict_proba(TEXTS), expected)
    with pytest.raises(NotFittedError):
        clone(fitted).predict(TEXTS)


@needs_kernels
def test_texts_in_other_containers(fitted):
    expected = fitted.predict_proba(TEXTS)
    for each in (pd.Series(TEXTS).to_frame("text"), np.array(TEXTS, object)[:, None], tuple(TEXTS)):
        np.testing.assert_array_equal(fitted.predict_proba(each), expected)


@needs_kernels
@pytest.mark.usefixtures("fast")
@pytest.mark.parametrize(
    "values",
    [[0, 1], np.array([3, 5], np.int16), [False, True], np.array([1.0, 2.0]), pd.array([1, 2], "Int64"), ["1", "2"]],
)
def test_answers_equal_labels_of_any_type(values):
    labels: Any = [values[row % 2] for row in range(100)]
    if isinstance(values, np.ndarray):
        labels = np.array(labels, values.dtype)
    answers = small(network="ngrams").fit(TEXTS, labels).predict(TEXTS)
    assert (answers == np.array(labels)).all()
    assert answers.dtype == np.array(labels).dtype


@needs_kernels
@pytest.mark.usefixtures("fast")
def test_options_of_training():
    truth = LABELS == "good"
    estimator = small(max_length=40, validation_fraction=0.2, patience=1, class_weight={True: 3.0}, random_state=None)
    estimator.fit([*TEXTS, " "], [*truth, True])
    assert estimator.classes_.dtype == bool
    assert estimator.predict(TEXTS).dtype == bool
    about = next(content for name, content in estimator.model_.items() if name.endswith(".json")).decode()
    assert '"feature_len": 40' in about
    assert "validation_accuracy" in about
    low = int(100 * estimator.predict_proba(["zzz"]).max())
    lines = (" ".join([*["0"] * low, texts, *["1"] * (100 - low)]) for texts in ("99", "0"))
    estimator._opened[0].calibration = Calibration(answers=tuple(lines))
    estimator.set_params(min_precision=0.5)
    assert estimator.predict(["a fine day, number 1", "zzz"]).tolist() == [True, None]
    assert estimator.score(TEXTS, truth) == 1


@needs_kernels
@pytest.mark.usefixtures("fast")
def test_several_labels():
    first = np.arange(100) // 2 % 2
    texts = [f"{text} {'zebra' if row else ''}" for text, row in zip(TEXTS, first)]
    table = pd.DataFrame({"good": (LABELS == "good").astype(int), "zebra": first, "never": 0})
    estimator = small(epochs=4, validation_fraction=0.3).fit(texts, table)
    assert estimator.classes_.tolist() == ["good", "zebra", "never"]
    np.testing.assert_array_equal(estimator.predict(texts), table)
    assert estimator.score(texts, table) == 1
    np.testing.assert_array_equal(estimator.set_params(min_precision=0.8).predict(texts), table)
    with pytest.raises(UserError, match="does not reach"):
        estimator.set_params(min_precision=0.95).predict(texts)


@pytest.mark.parametrize(
    ("texts", "labels", "what"),
    [
        ("one text", LABELS, "the texts are of type str"),
        (pd.Series(["a", np.nan]), [0, 1], "text 1 is missing"),
        (["a", 5], [0, 1], "text 1 is not a string"),
        (["a", "b"], [0], "there are 2 texts and 1 labels"),
        (["a", "b"], ["x", None], "label 1 is missing"),
        (["a", "b"], [1, 1], "all labels are of one class"),
        (["a", "b"], None, "there are no labels"),
        (["a", "b"], [["x"], ["x", "y"]], "the texts have multiple labels each"),
        (["a", "b"], np.array([[0, 1], [2, 1]]), "the matrix of labels, of shape (2, 2),"),
    ],
)
def test_texts_and_labels_that_cannot_be_used(texts, labels, what):
    with pytest.raises(InvalidInput) as caught:
        small().fit(texts, labels)
    assert caught.value.what.startswith(what)
    assert isinstance(caught.value, ValueError)


def test_errors_of_training_come_back():
    with pytest.raises(InvalidInput) as caught:
        small(settings={"model.widht": 3}).fit(TEXTS, LABELS)
    assert caught.value.what.endswith("there is no setting model.widht")
    assert caught.value.__suppress_context__  # one error, not two
    with pytest.raises(InvalidInput, match="the weight of text 1 is -1"):
        small().fit(TEXTS, LABELS, sample_weight=[1, -1] * 50)
    with pytest.raises(UserError, match="class_weight has the label 'nice'"):
        small(class_weight={"nice": 2}).fit(TEXTS, LABELS)


def test_scikit_learn_is_optional(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    for name in ("crepe_dist.estimator.classifier", "crepe_dist.estimator"):
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(UserError, match="CrepeClassifier needs scikit-learn"):
        crepe_dist.CrepeClassifier  # noqa: B018  # The module of the estimator is imported at the first use.


class OverNumbers(CrepeClassifier):
    """The estimator for rows of numbers, which are converted to texts. scikit-learn's checks use only numbers."""

    def fit(self, X, y, sample_weight=None, *, unlabelled=None, groups=None):
        X, y = validate_data(self, X, y, multi_output=np.asarray(y).ndim == 2)
        return super().fit(_spelled(X), y, sample_weight, unlabelled=unlabelled, groups=groups)

    def predict_proba(self, X):
        return super().predict_proba(_spelled(validate_data(self, X, reset=False)))

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.string = tags.input_tags.one_d_array = False
        tags.input_tags.two_d_array = True
        return tags


def _spelled(rows):
    return [" ".join(f"{chr(97 + place % 26)}{round(2 * value):+d}" for place, value in enumerate(row)) for row in rows]


UNSUPPORTED = {
    "check_sample_weight_equivalence_on_dense_data": "a repeated row is in other batches than a weighted one",
    "check_class_weight_classifiers": "weights more than a million times apart are refused",
}


@pytest.mark.slow
@pytest.mark.usefixtures("fast")
def test_the_checks_of_scikit_learn():
    found = check_estimator(
        OverNumbers("ngrams", epochs=20, learning_rate=0.03, settings={"model.buckets": 4096}),
        expected_failed_checks=UNSUPPORTED,
        on_fail=None,
        on_skip=None,
    )
    failed = {each["check_name"]: each["exception"] for each in found if each["status"] == "failed"}
    assert failed == {}
    assert len(found) > 40


def test_texts_without_labels(monkeypatch):
    """Check the prepared data: texts with the label -1 and further texts are in the unlabelled split."""
    made: dict[str, Any] = {}

    def train(table, unlabelled, *args, **options):
        made.update({name: list(column) for name, column in table.items()}, unlabelled=unlabelled)
        return {}

    monkeypatch.setattr(classifier, "fit_checkpoint", train)
    with pytest.warns(UserWarning, match="1 labels are -1"):
        model = CrepeClassifier().fit(["a", "b", "c"], [7, -1, 9], [1.0, 2.0, 3.0], unlabelled=["d", "e"])
    assert made == {"text": ["a", "c"], "label": [0, 1], "weight": [1.0, 3.0], "unlabelled": ["b", "d", "e"]}
    assert model.classes_.tolist() == [7, 9]
    assert CrepeClassifier().fit(["a", "b"], [-1, 1], [1.0, 1.0]).classes_.tolist() == [-1, 1]


@needs_kernels
@pytest.mark.usefixtures("fast")
def test_weights_and_texts_without_labels():
    frame = pd.DataFrame({"text": TEXTS})
    further = pd.DataFrame({"text": [f"another day, number {row}" for row in range(30)]})
    model = small(network="ngrams", epochs=4)
    model.fit(frame, LABELS, np.linspace(0, 2, 100), unlabelled=further)
    assert model.score(frame, LABELS) == 1


def test_groups_stay_together_in_the_validation_split(monkeypatch):
    made: dict[str, Any] = {}

    def prepare(table, folder, options, processes):
        crepe_dist.prepare(table, folder, verbose=False, **options)
        data = open_dataset(folder)
        made.update({split: data.splits[split].groups for split in data.splits})
        made["authors"] = {split: {row["group"] for row in made_rows(table, data, split)} for split in data.splits}
        raise UserError("stopped", remedy="do nothing")

    def made_rows(table, data, split):
        lines = [data.origin(split, row).line - 1 for row in range(len(data.splits[split]))]
        return [{"group": table["group"][line]} for line in lines]

    monkeypatch.setattr(fitting, "prepare_from_python", prepare)
    groups = np.array([f"author {row // 10}" for row in range(100)])
    model = small(validation_fraction=0.2)
    for given in (groups, groups.tolist(), pd.Series(groups, index=range(7, 107)), np.arange(100) // 10 / 2):
        with pytest.raises(InvalidInput, match="stopped"):
            model.fit(TEXTS, LABELS, groups=given)
        assert len(made["validation"]) == 20
        assert not made["authors"]["validation"] & made["authors"]["train"]
        assert len(set(made["validation"])) == 2
    for wrong, message in ((groups[:5], "100 texts and 5 groups"), (groups[:, None], "not a single value")):
        with pytest.raises(InvalidInput, match=message):
            model.fit(TEXTS, LABELS, groups=wrong)
    with config_context(enable_metadata_routing=True):
        assert model.set_fit_request(groups=True).get_metadata_routing().fit.requests["groups"] is True
