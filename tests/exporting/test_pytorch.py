"""The PyTorch module computes our logits, learns, and comes back: on a stand-in of NumPy, and on PyTorch itself."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import peers
import pytest

import crepe_dist.train
from crepe_dist.data.dataset import open_dataset
from crepe_dist.errors import UserError
from crepe_dist.exporting import crepe_runtime
from crepe_dist.exporting.exporter import TORCH_MODULE, export, torch_source
from crepe_dist.predicting.predictor import Predictor
from crepe_dist.settings.options import ModelOptions
from crepe_dist.training import transfer
from tests.conftest import TRIGRAMS
from tests.exporting.test_export import CASES, ENCODINGS, KINDS, imported, make, texts
from tests.helpers import torch_stand_in

WORKER = """
import json, runpy
import torch

given = json.load(open("given.json"))
answers = []
for folder in given["folders"]:
    Classifier = runpy.run_path(folder + "/crepe_torch.py")["Classifier"]
    model = Classifier(folder)
    codes = model.encode(given["texts"])
    labels = torch.tensor(given["labels"])
    with torch.no_grad():
        before = model(codes)
    optimizer = torch.optim.Adam([each for each in model.parameters() if each.requires_grad], lr=0.002)
    losses = []
    model.train()
    for step in range(given["steps"]):
        loss = sum(torch.nn.functional.cross_entropy(part, labels) for part in model.parts(codes))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    model.eval()
    with torch.no_grad():
        after = model(codes)
    model.save(folder + "-trained")
    shares = Classifier(folder + "-trained").predict(given["texts"])
    answers.append({"before": before.tolist(), "after": after.tolist(), "losses": losses, "shares": shares})
json.dump(answers, open("answers.json", "w"))
"""


def exported(path: Path, folder: Path) -> Predictor:
    """Export a checkpoint; return its predictor."""
    predictor = crepe_dist.load(path, device="cpu")
    files, difference = export(predictor, "pytorch", folder, texts(20))
    assert [file.name for file in files] == [TORCH_MODULE, "model.json", "model.safetensors"]
    assert difference < 1e-6
    return predictor


def logits(predictor: Predictor, given: list[str]) -> np.ndarray:
    return predictor.engine.logits(predictor.encoding.encode(given))


@pytest.fixture
def classifier(monkeypatch) -> Callable[[Path], Any]:
    """Open an exported folder by its own module, on the stand-in."""
    torch_stand_in.install(monkeypatch)
    return lambda folder: runpy.run_path(str(folder / TORCH_MODULE))["Classifier"](folder)


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_the_module_computes_our_logits(kind, name, tmp_path, classifier):
    predictor, given = exported(make(tmp_path, kind, ENCODINGS[name]), tmp_path / "out"), texts(60)
    model = classifier(tmp_path / "out")
    assert (model.encode(given) == predictor.encoding.encode(given)).all()
    np.testing.assert_allclose(model(model.encode(given)), logits(predictor, given), atol=1e-5)
    for found, expected in zip(model.predict(given), predictor.predict(given)):
        assert found.problem == expected.problem
        assert found == pytest.approx({} if expected.problem else dict(expected.ranking), abs=1e-5)
        assert list(found.values()) == sorted(found.values(), reverse=True)


def test_what_is_no_list_of_texts(tmp_path, classifier):
    exported(make(tmp_path, "ngrams", ENCODINGS["paper"]), tmp_path / "out")
    model = classifier(tmp_path / "out")
    wrong: tuple[Any, ...] = ("one text", {"text": ["a"]}, pd.DataFrame({"text": ["a"]}), 5)
    for predict in (model.predict, crepe_runtime.checked):
        for given in wrong:
            with pytest.raises(TypeError, match=type(given).__name__):
                predict(given)
    assert model.predict([]) == []
    assert len(model.predict(pd.Series(["a b", " "]))) == 2


@pytest.mark.parametrize("kind", KINDS)
def test_what_the_module_saved_opens_and_can_be_started_from(kind, tmp_path, classifier, data):
    dataset = open_dataset(data)
    predictor = exported(make(tmp_path, kind, dataset.encoding, dataset.classes), tmp_path / "out")
    model = classifier(tmp_path / "out")
    bias = {"crepe": "tower/out/bias", "ngrams": "bias", "paper": "14/bias"}[kind]
    model.arrays[bias] = model.arrays[bias] + np.float32(1)
    model.save(tmp_path / "trained")
    assert (tmp_path / "trained" / TORCH_MODULE).read_text() == torch_source(kind)
    again = crepe_dist.load(tmp_path / "trained", device="cpu")
    assert again.classes == predictor.classes
    shift = 0.75 if kind == "crepe" else 1
    np.testing.assert_allclose(logits(again, texts(20)), logits(predictor, texts(20)) + shift, atol=1e-5)
    start = transfer.read(str(tmp_path / "trained"), ModelOptions(), dataset)
    assert start.summary == f"all layers from {tmp_path / 'trained' / 'model.safetensors'}"
    assert start.arrays.keys() == predictor.engine.arrays.keys()
    assert start.shape == predictor.engine.shape
    with pytest.raises(UserError, match="encoded differently") as raised:
        transfer.read(str(tmp_path / "trained"), ModelOptions(), replace(dataset, encoding=ENCODINGS["full"]))
    assert "--mode paper" in raised.value.remedy


@pytest.mark.parametrize("kind", KINDS)
def test_the_module_needs_what_it_says(kind):
    assert imported(torch_source(kind)) == {"collections", "hashlib", "json", "pathlib", "torch", "safetensors"}


@pytest.mark.slow
@pytest.mark.skipif(sys.version_info < peers.NEEDED, reason="PyTorch needs a newer Python")
def test_pytorch_computes_our_logits_and_trains_on(tmp_path):
    python = peers.interpreter(print)
    predictors = {}
    for kind, name in CASES:
        folder = str(tmp_path / f"{kind}-{name}")
        predictors[folder] = exported(make(Path(folder + "-run"), kind, ENCODINGS[name]), Path(folder))
    given = [f"{text} {TRIGRAMS[number % 3]}" for number, text in enumerate(texts(60))]
    request = {"folders": list(predictors), "texts": given, "labels": [n % 3 for n in range(60)], "steps": 60}
    (tmp_path / "given.json").write_text(json.dumps(request))
    clean = peers.environment()
    subprocess.run([python, "-I", "-c", WORKER], cwd=tmp_path, env=clean, check=True)
    answers = json.loads((tmp_path / "answers.json").read_text())
    for (folder, predictor), answer in zip(predictors.items(), answers):
        np.testing.assert_allclose(answer["before"], logits(predictor, given), atol=1e-5)
        assert answer["losses"][-1] < answer["losses"][0]
        again = crepe_dist.load(folder + "-trained", device="cpu")
        np.testing.assert_allclose(answer["after"], logits(again, given), atol=1e-4)
        for found, expected in zip(answer["shares"], again.predict(given)):
            assert found == pytest.approx({} if expected.problem else dict(expected.ranking), abs=1e-5)
