"""Feature columns: fitted by prepare, used in training on one and two processes, and read from all kinds of input."""

import json
import random
import re
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from pydantic import ValidationError

import crepe_dist
from crepe_dist.data.dataset import open_dataset
from crepe_dist.data.text_preprocessing import (
    EMPTY,
    FEATURE_CODE_POINTS,
    FIELD_SEPARATOR,
    UNKNOWN_CHARACTER,
    FeatureColumn,
    TextPreprocessor,
    append_values,
    normalize_category,
)
from crepe_dist.errors import UserError
from crepe_dist.files.safe_read import sha256
from crepe_dist.predicting.prediction import NO_KNOWN_CHARACTERS
from crepe_dist.reports.explanation import serve_page
from crepe_dist.runs import checkpoint
from crepe_dist.serving.requests import HttpError, PredictRequest
from crepe_dist.settings.options import ServiceOptions
from tests.conftest import QUICK, needs_kernels, train

BESIDE: Any = {"category": "colour", "number": "amount"}
COLUMNS = TextPreprocessor(
    ("text",), True, (FeatureColumn("colour", ("red", "blue")), FeatureColumn("amount", edges=(0.0, 10.0)))
)
WORDS = ["alpha", "beta", "gamma", "delta", "omega", "sigma", "kappa", "lambda", "theta", "zeta"]


def characters(*numbers):
    return "".join(
        f"{UNKNOWN_CHARACTER}{number if number == UNKNOWN_CHARACTER else chr(FEATURE_CODE_POINTS.start + number)}"
        for number in numbers
    )


@pytest.mark.parametrize(
    ("row", "numbers"),
    [
        (append_values("a <b>text</b>", ["blue", "-1"]), (2, 4)),
        (append_values("a text", ["", ""]), (0, 3)),
        (append_values("a text", [" red ", "0"]), (1, 5)),
        (append_values("a text", ["green", "1e9"]), (UNKNOWN_CHARACTER, 6)),
        ("a text", (0, 3)),
    ],
)
def test_a_value_is_one_character_that_stands_alone(row, numbers):
    assert COLUMNS.text(row) == f"a text {characters(*numbers)}"
    assert TextPreprocessor.from_dict(json.loads(json.dumps(COLUMNS.to_dict()))) == COLUMNS


def test_no_text_can_pretend_a_value():
    row = append_values(f"a{FIELD_SEPARATOR}b {chr(FEATURE_CODE_POINTS.start + 1)}", ["red", f"1{FIELD_SEPARATOR}"])
    assert COLUMNS.text(row) == f"a b {UNKNOWN_CHARACTER} {characters(1, 5)}"


def test_values_for_people():
    assert COLUMNS.display_text(append_values("a text", ["red", "3"])) == "a text | colour: red | amount: 3"
    described = [COLUMNS.describe_character(chr(FEATURE_CODE_POINTS.start + number)) for number in (0, 2, 4, 5, 6)]
    assert described == [
        "| colour: missing", "| colour: blue", "| amount: below 0", "| amount: from 0 below 10", "| amount: from 10",
    ]  # fmt: skip


def rows(count, seed):
    """Return texts that do not depend on the class, with a category and a number that determine it."""
    generator = random.Random(seed)
    table: dict[str, list] = {"text": [], "colour": [], "amount": [], "label": []}
    for _ in range(count):
        colour, amount = generator.choice(["red", "blue", ""]), generator.gauss(0, 100)
        values = " ".join(generator.choices(WORDS, k=5)), colour, round(amount, 2)
        for name, value in zip(table, (*values, ("A" if colour == "red" else "B") + "-+"[amount > 0])):
            table[name].append(value)
    return pd.DataFrame(table)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Prepare ``data`` from ``train.csv``, and train ``run-1`` on one process and ``run-2`` on two processes.

    The runs are trained in float32, because exports compute in float32.
    """
    folder = tmp_path_factory.mktemp("columns")
    rows(1500, 1).to_csv(folder / "train.csv", index=False)
    rows(200, 2).to_csv(folder / "new.csv", index=False)
    crepe_dist.prepare(folder / "train.csv", folder / "data", **BESIDE)
    for processes in (1, 2):
        flags = ("--optimizer=adam", "--learning-rate=0.01", "--epochs=4", f"--run-dir=run-{processes}")
        train("--data=data", "--precision=float32", *QUICK, *flags, cwd=folder, processes=processes)
    return folder


@needs_kernels
def test_the_columns_decide_in_one_process_as_in_two(folder, printed_by):
    paths = [checkpoint.resolve_model(str(folder / f"run-{processes}")) for processes in (1, 2)]
    assert sha256(paths[0]) == sha256(paths[1])
    assert crepe_dist.load(paths[0]).score(pd.read_csv(folder / "new.csv")) > 0.9
    printed = printed_by("evaluate", "run-1", cwd=folder)
    reduced = [float(line.split("accuracy ")[1].split(" %")[0]) for line in printed.splitlines() if "without" in line]
    assert len(reduced) == 2
    assert max(reduced) < 80


@needs_kernels
def test_all_kinds_of_input_are_read_alike(folder, printed_by):
    model: Any = crepe_dist.load(folder / "run-1")
    frame = pd.read_csv(folder / "new.csv")
    frame.to_json(folder / "new.jsonl", orient="records", lines=True)
    frame.to_parquet(folder / "new.parquet")
    expected = [round(each.probability, 6) for each in model.predict(frame)]
    for name in ("new.csv", "new.jsonl", "new.parquet"):
        printed_by("predict", "run-1", f"--file={name}", "--out=out.csv", cwd=folder)
        assert pd.read_csv(folder / "out.csv").predicted_probability.tolist() == expected, name
    printed_by("export", "run-1", "--format=onnx", "--out=onnx")
    from crepe_dist.exporting.crepe_runtime import Classifier

    exported = Classifier(str(folder / "onnx" / "model.onnx"))
    found = exported.predict(frame.to_dict("records"))
    with pytest.raises(
        ValueError, match="a row has no key 'text', which may be None; it has 'txt', 'colour', 'amount'"
    ):
        exported.predict([{"txt": "alpha", "colour": "red", "amount": 50}])
    assert exported.predict([{"text": None, "colour": "red", "amount": 50, "more": 1}])
    assert np.abs(np.array([each.probability for each in found]) - expected).max() < 1e-5
    # Values of columns are no characters of a text: without one that is known, no class is an answer.
    rows = [{"text": text, "colour": "blue", "amount": 50} for text in ("日本", "alpha 日本", " ", "alpha")]
    own, others = model.predict(pd.DataFrame(rows)), exported.predict(rows)
    assert [(each.characters_read, each.error) for each in own] == [
        (0, NO_KNOWN_CHARACTERS),
        (5, ""),
        (0, EMPTY),
        (5, ""),
    ]
    assert [(each.characters_read, each.error) for each in own] == [
        (each.characters_read, each.error) for each in others
    ]
    columns = {"colour": frame.colour[0], "amount": float(frame.amount[0])}
    (asked,) = _asked({"text": frame.text[0], "columns": columns}, model)
    assert round(next(model.predict_stream(iter([asked]))).probability, 6) == expected[0]
    page, _ = serve_page(model, ServiceOptions())
    assert re.findall("data-column='(.*?)'", page) == ['"colour"', '"amount"']
    assert '<option value="blue">' in page
    for wrong, message in (({"amount": "many"}, "unusable number"), ({"size": 1}, "colour and amount")):
        with pytest.raises(HttpError, match=message):
            _asked({"text": "a", "columns": wrong}, model)


@needs_kernels
def test_a_request_may_name_columns_as_in_training(folder):
    model: Any = crepe_dist.load(folder / "run-1")
    want = _asked({"text": "alpha", "columns": {"colour": "red", "amount": 50}}, model)
    alike: list[dict[str, Any]] = [
        {"text": "alpha", "colour": "red", "amount": 50},
        {"columns": {"text": "alpha", "colour": "red", "amount": 50}},
        {"amount": 50, "columns": {"colour": "red"}, "text": "alpha"},
    ]
    for question in alike:
        assert _asked(question, model) == want
    model.composition = replace(model.composition, columns=("body", "title", "note"))
    want = [append_values("B | T | N", ["red", ""])]
    assert _asked({"title": "T", "note": "N", "body": "B", "colour": "red"}, model) == want  # in the order of training
    assert _asked({"body": "B", "colour": None}, model) == [append_values("B", ["", ""])]
    assert _asked({"title": "T", "text": "B"}, model) == [append_values("T | B", ["", ""])]
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"headline": "T"}, "the model reads no column 'headline'\n.* body, title, note, colour and amount"),
        ({"colour": "red"}, "the request has no text\n.*body"),
        ({"text": "B", "note": "N"}, "names its text in two ways"),
        ({"title": "T", "columns": {"title": "T"}}, "a column is given twice"),
        ({"texts": ["B"], "colour": "red"}, "need a single text"),
        ({"body": ["B"]}, "body"),
        ({"title": "T", "texts": ["B"]}, "need a single text"),
        ({}, "give either text or texts"),
    ]
    for question, message in wrong:
        with pytest.raises((HttpError, ValidationError), match=message):
            _asked(question, model)


def _asked(question, model):
    return PredictRequest.model_validate(question).all_texts(model.composition)


@needs_kernels
def test_an_explanation_names_values(folder):
    model = crepe_dist.load(folder / "run-1")
    explanation = model.explain(append_values("alpha", ["red", "50"]))
    assert [word.text.split(":")[0] for word in explanation.words] == ["alpha", "| colour", "| amount"]
    assert len(explanation.scores) == len(explanation.text)


@needs_kernels
def test_bad_columns(folder, tmp_path):
    frame = rows(100, 3)
    for change, message in [
        ({"amount": "many"}, "unusable number"),
        ({"colour": ""}, "column 'colour' is empty in all training rows"),
    ]:
        frame.assign(**change).to_csv(tmp_path / "bad.csv", index=False)
        with pytest.raises(UserError, match=message):
            crepe_dist.prepare(tmp_path / "bad.csv", tmp_path / "bad", **BESIDE)
    with pytest.raises(UserError, match="has no column 'amount'"):
        crepe_dist.load(folder / "run-1").predict(frame.drop(columns="amount"))
    many = frame.assign(colour=[f"colour {row}" for row in range(100)])
    many = pd.concat([many.assign(colour=many.colour + f" {copy}") for copy in range(150)])
    many["shade"], many["size"] = many.colour + " dark", many.amount > 0
    crepe_dist.prepare(many, tmp_path / "many", category=["colour", "shade", "size"])
    data = open_dataset(tmp_path / "many")
    encoding, values = data.encoder, data.preprocessor.feature_columns
    assert [column.size for column in values] == [9471, 9471, 3]
    of_size = set(data.preprocessor.characters()[-2:])
    assert of_size < set(encoding.alphabet + encoding.two_id_characters)  # the most frequent ones
    assert 5000 < len(encoding.alphabet) + len(encoding.two_id_characters) < 10_000


@needs_kernels
def test_values_of_python_and_of_texts(folder):
    model: Any = crepe_dist.load(folder / "run-1")
    frame = pd.DataFrame({"text": ["alpha"] * 3, "colour": ["red"] * 3, "amount": ["many", float("inf"), 5]})
    problems = [each.error for each in model.predict(frame)]
    assert problems == ["unusable number: amount is 'many'", "unusable number: amount is 'inf'", ""]
    assert model.predict([f"alpha{FIELD_SEPARATOR}red{FIELD_SEPARATOR}50"]) == model.predict(["alpha red 50"])
    assert [normalize_category(each) for each in ("7.0", " 007 ", "True", "1.50", ".0")] == [
        "7",
        "007",
        "true",
        "1.50",
        ".0",
    ]


@pytest.mark.parametrize(
    ("spellings", "expected"),
    [
        (["2024-01-01", "2024-01-01 00:00:00", "2024-01-01T00:00:00", "2024-01-01 00:00:00.000000000"], "2024-01-01"),
        (["2024-01-01 10:30:00", "2024-01-01T10:30:00.000"], "2024-01-01 10:30:00"),
        (["2024-01-01 00:00:00.250000"], "2024-01-01 00:00:00.25"),
        (["00:00:00"], "00:00:00"),
        (["-7.0", "-7"], "-7"),
        (["-0.0", "0"], "0"),
        (["True", "true"], "true"),
    ],
)
def test_formats_spell_a_value_alike(spellings, expected):
    from crepe_dist.exporting import crepe_runtime

    assert set(map(normalize_category, spellings)) == set(map(crepe_runtime.category, spellings)) == {expected}
    assert [FeatureColumn("when", (spellings[-1],)).value_index(each) for each in spellings] == [1] * len(spellings)


@needs_kernels
def test_a_network_starts_from_one_of_the_same_columns_only(folder):
    given = {**BESIDE, "alphabet": folder / "run-1", "feature_len": 123}
    crepe_dist.prepare(folder / "new.csv", folder / "other", **given)
    with pytest.raises(UserError, match="other feature columns"):
        train("--data=other", *QUICK, "--init-from=run-1", "--run-dir=again", cwd=folder)
