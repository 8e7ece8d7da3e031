"""Every runtime answers alike on texts that are meant to confuse a reader of capital letters."""

from typing import Any

import numpy as np
import pytest

from crepe_dist.data.char_encoder import CharEncoder
from crepe_dist.errors import UserError
from crepe_dist.exporting import onnx_file
from crepe_dist.native import library
from tests.chaos.harness import slow
from tests.conftest import FEATURE_LEN
from tests.data.test_char_encoder import reference
from tests.helpers import runtimes
from tests.helpers.nasty_texts import marked_encoders, nasty_texts
from tests.helpers.runtimes import Model

ENCODERS = marked_encoders(FEATURE_LEN)
TEXTS = nasty_texts(200, FEATURE_LEN)
CASES = [
    ("crepe", "two ids", {"strip_html": True}),
    slow("crepe", "learned", {"multilabel": True}),
    ("ngrams", "standard", {}),
    slow("paper", "folded", {}),
]


def assert_as_defined(model: Model, answers: Any) -> None:
    """Compare answers with the reference implementations of the encoder and the network."""
    probabilities, read = runtimes.by_definition(model, TEXTS, reference)
    classes = model.load().classes
    found = np.array([[dict(answer.ranking)[name] for name in classes] for answer in answers])
    np.testing.assert_allclose(found, probabilities, atol=1e-5)
    assert [answer.characters_read for answer in answers] == [
        0 if answer.error else count for answer, count in zip(answers, read.tolist())
    ]


@pytest.mark.parametrize(("kind", "name", "about"), CASES)
def test_every_runtime_answers_alike(kind, name, about, tmp_path, monkeypatch):
    model = Model.make(tmp_path, kind, ENCODERS[name], **about)
    answers = runtimes.by_numpy(model, TEXTS)
    assert_as_defined(model, answers)
    assert len({answer.label for answer in answers}) > 1
    others = [runtimes.by_onnx, *([runtimes.by_mxnet] if kind == "paper" else [])]
    for build in library.loadable_builds():
        monkeypatch.setenv(library.KERNELS_ENV, build)
        assert_as_defined(model, runtimes.by_package(model, TEXTS))
    for run in others:
        found = run(model, TEXTS)
        assert_as_defined(model, found)
        for one, other in zip(found, answers):
            assert (one.characters_truncated, one.error) == (other.characters_truncated, other.error)


def test_the_service_answers_as_predict_does(tmp_path):
    model = Model.make(tmp_path, "ngrams", ENCODERS["learned"])
    texts = [text for text in TEXTS if "\ud800" not in text][-100:]  # JSON has no surrogates.
    for found, expected in zip(runtimes.by_service(model, texts), runtimes.by_package(model, texts), strict=True):
        assert (found.get("problem", ""), found.get("read", 0)) == (expected.error, expected.characters_read)
        if not expected.error:
            assert {each["class"]: each["probability"] for each in found["top"]} == pytest.approx(
                dict(expected.ranking), abs=1e-5
            )


@pytest.mark.parametrize("runtime", ["ascii", "other", "onnx"])
def test_a_mistake_in_one_runtime_is_found(runtime, tmp_path, monkeypatch):
    model = Model.make(tmp_path, "ngrams", ENCODERS["standard"])
    if runtime == "ascii":
        monkeypatch.setattr(CharEncoder, "_is_ascii_capital", lambda encoder, points: points == ord("A"))
    elif runtime == "other":
        monkeypatch.setattr(CharEncoder, "is_capital", np.zeros(0x110000, np.bool_))
    else:
        marks = onnx_file._marks
        swapped: Any = type("Swapped", (), {"mark_ids": [70, 69], "is_capital": ENCODERS["standard"].is_capital})
        monkeypatch.setattr(onnx_file, "_marks", lambda graph, encoder, *more: marks(graph, swapped, *more))
    run = runtimes.by_onnx if runtime == "onnx" else runtimes.by_package
    with pytest.raises((AssertionError, UserError), match=r"Not equal to tolerance|computes different probabilities"):
        assert_as_defined(model, run(model, TEXTS))
