"""Every reader of texts gives the network the same codes, whatever the texts try to pass for."""

import csv
import random
import runpy
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import crepe_dist
from crepe_dist.data.dataset import open_dataset
from crepe_dist.exporting import crepe_runtime, exporter
from crepe_dist.predicting.input_reader import open_inputs_for_model
from crepe_dist.predicting.labelled import prepare_labelled
from crepe_dist.predicting.prediction import NO_KNOWN_CHARACTERS
from crepe_dist.predicting.predictor import Predictor
from crepe_dist.preparing.sources import ReadOptions
from crepe_dist.serving.requests import PredictRequest

PRIVATE = 0xF0001
PIECES = [
    "a", "Zoë", "日本", " ", "\t", "\x1f", "\0", "<b>", "</b>", "<p>", "<script>", "</script>",
    "<", "&", ";", "&amp;",
    "&nbsp;", f"&#{PRIVATE};", f"&#x{PRIVATE:X};", f"&#{PRIVATE}", f"&amp;#{PRIVATE};", f"&amp;amp;#{PRIVATE};",
    "&#31;", "&#0;",
    "&#xD800;", "&#x110000;", chr(PRIVATE), chr(0x10FEFF),
    "=1+1", "'@D", "&lt;b&gt;", "\ufeff",
]  # fmt: skip


class Recording:
    """Engine that records the character ids that it receives."""

    def __init__(self, classes: int) -> None:
        self.codes: list[Any] = []
        self.classes = classes

    def logits(self, codes: Any) -> Any:
        self.codes += [bytes(row) for row in codes]
        return np.zeros((len(codes), self.classes), np.float32)


def rows(texts):
    return {"text": texts, "label": ["x", "y"] * (len(texts) // 2) + ["x"] * (len(texts) % 2)}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Make a model of a case. Only the character ids of its texts matter."""

    @cache
    def data(strip):
        folder = tmp_path_factory.mktemp("data") / "data"
        crepe_dist.prepare(rows([f"Zoë <i>a</i> {n}" for n in range(60)]), folder, strip_html=strip)
        return open_dataset(folder)

    def model(strip):
        of = data(strip)
        about = {"reading": of.manifest["reading"]}
        engine: Any = Recording(2)
        return Predictor(engine, of.encoder, of.classes, composition=of.preprocessor, metadata=about)

    return model


def asked(model, texts):
    """The codes of rows for a model, ``None`` for those that cannot be classified."""
    return [usable(answer, model) for row in texts for answer in model.predict_stream(iter([row]))]


def usable(answer, model):
    """The codes of a text. A text of unknown characters also has codes, because training reads it."""
    return model.engine.codes[-1] if answer.error in ("", NO_KNOWN_CHARACTERS) else None


def of_file(model, path):
    inputs = open_inputs_for_model(str(path), model)
    return [None if row.error else asked(model, [row.text])[0] for group in inputs for row in group]


def readings(model, table, folder):
    """The codes of each row, as each reader gives them."""
    frame = pd.DataFrame(table)
    frame.to_json(folder / "rows.jsonl", orient="records", lines=True, force_ascii=False)
    frame.to_parquet(folder / "rows.parquet")
    with (folder / "rows.csv").open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerows([frame.columns, *frame.to_numpy().tolist()])
    found = {suffix: of_file(model, folder / f"rows.{suffix}") for suffix in ("csv", "jsonl", "parquet")}
    records = frame.to_dict("records")
    found["python"] = [asked_frame(model, pd.DataFrame([record])) for record in records]
    questions = (PredictRequest.model_validate({"text": record["text"]}) for record in records)
    found["serve"] = [asked(model, question.all_texts(model.composition))[0] for question in questions]
    prepare_labelled(model, table, folder, ReadOptions())
    data = open_dataset(folder / "data", trains=False)
    split = data.splits["test"]
    of_line = {int(line): row for row, line in enumerate(split.source_rows[:, 1])}
    places = [of_line.get(number) for number in range(1, len(frame) + 1)]
    found["evaluate"] = [None if row is None else bytes(split.char_ids(np.array([row]))[0]) for row in places]
    again = [None if row is None else split.text(row) for row in places]
    found["stored"] = [None if text is None else bytes(model.encoding.encode([text])[0]) for text in again]
    (source := folder / "runtime.py").write_text(
        Path(crepe_runtime.__file__).read_text(encoding="utf-8") + exporter._html_stripping_source(model)
    )
    runtime = runpy.run_path(str(source))["Classifier"]
    classifier = object.__new__(runtime)
    composed = [classifier.without_tags(record["text"]) for record in records]
    found["onnx"] = [bytes(model.encoding.encode([text])[0]) if text.strip() else None for text in composed]
    return found


def asked_frame(model, frame):
    (answer,) = model.predict(frame)
    return usable(answer, model)


@pytest.mark.parametrize("strip", [True, False])
def test_all_readers_give_the_same_codes(models, strip, tmp_path):
    model, draw = models(strip), random.Random(1)
    texts = [*PIECES, *("".join(draw.choices(PIECES, k=draw.randint(0, 6))) for _ in range(60))]
    found = readings(model, rows(texts), tmp_path)
    assert None in found["csv"]
    for name, codes in found.items():
        differing = [text for text, one, other in zip(texts, codes, found["csv"]) if one != other]
        assert not differing, name
