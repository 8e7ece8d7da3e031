"""Model folders for other tools, MLflow and the Hugging Face Hub, models at URLs, and clients of `serve`."""

import json
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pandas as pd
import pytest
import yaml

import crepe_dist
from crepe_dist.data.text_preprocessing import TextPreprocessor
from crepe_dist.exporting.exporter import export
from crepe_dist.files.folders import cache_folder
from crepe_dist.predicting.dataframe import _load_pyfunc, predict_frame
from tests.conftest import run
from tests.exporting.test_export import CALIBRATION, CLASSES, ENCODINGS, make, texts
from tests.helpers.needs import needs

ROOT = Path(__file__).parents[2]
SLOW = [pytest.mark.slow, needs("uv")]


@pytest.fixture
def model(tmp_path):
    """The checkpoint of a run, and its predictor."""
    path = make(tmp_path / "run", "ngrams", ENCODINGS["paper"], data={"name": "three <b>kinds</b>"})
    return path, crepe_dist.load(path, device="cpu")


def exported(model, form: str, out: Path, **metadata: Any) -> list[str]:
    predictor = replace(model[1], metadata={**model[1].metadata, **metadata})
    files, difference = export(predictor, form, out, texts())
    assert difference == 0
    return [str(file.relative_to(out)) for file in files]


class TestMlflow:
    def test_the_folder_names_code_of_the_package_and_no_other(self, model, tmp_path):
        out = tmp_path / "out"
        composition = TextPreprocessor(("headline", "body")).to_dict()
        files = exported(model, "mlflow", out, composition=composition)
        assert files == ["MLmodel", "model.json", "model.safetensors"]
        about = yaml.safe_load((out / "MLmodel").read_text(encoding="utf-8"))
        assert about["flavors"]["python_function"].keys() == {"loader_module", "python_version"}
        inputs = json.loads(about["signature"]["inputs"])
        assert [(each["name"], each["type"]) for each in inputs] == [("headline", "string"), ("body", "string")]
        answers = _load_pyfunc(str(out)).predict(pd.DataFrame({"headline": ["zig"], "body": ["qua vex"]}))
        outputs = {each["name"]: each["type"] for each in json.loads(about["signature"]["outputs"])}
        assert list(outputs) == list(answers)
        assert outputs["predicted_probability"] == "double"
        assert answers["predicted_class"][0] == model[1].predict(["zig | qua vex"])[0].label

    def test_several_labels(self, model):
        predictor = model[1]
        predictor.thresholds = np.array([0.0, 0.0, 2.0])
        answers = predict_frame(predictor, pd.DataFrame({"text": ["zig", ""]}))
        assert {*json.loads(answers["predicted_labels"][0])} == {*CLASSES[:2]}
        assert answers["predicted_labels"][1] == "[]"


class TestHub:
    def test_the_card(self, model, tmp_path):
        files = exported(model, "huggingface", tmp_path / "out")
        assert files == ["README.md", "model.json", "model.safetensors"]
        text = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
        head = re.match(r"---\n(.*?)\n---\n", text, re.DOTALL)
        assert head is not None
        metadata = yaml.safe_load(head[1])
        assert (metadata["library_name"], metadata["pipeline_tag"]) == ("crepe_dist", "text-classification")
        (entry,) = metadata["model-index"]
        assert entry["name"] == "three <b>kinds</b>"
        assert entry["results"][0]["metrics"] == [{"type": "accuracy", "name": "accuracy", "value": 0.5}]
        body = text[head.end() :]
        assert "<b>" not in body
        assert 'crepe_dist.load("hf://OWNER/NAME")' in body
        assert "good, schlecht, sehr, плохо" in body


class TestUrls:
    def put(self, files, folder: Path) -> None:
        for path in folder.iterdir():
            files.pipe(f"/hub/model/{path.name}", path.read_bytes())

    @pytest.fixture
    def memory(self, model, tmp_path, monkeypatch):
        """A model folder at memory://hub/model, and an empty cache."""
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        exported(model, "crepe", tmp_path / "out")
        files = fsspec.filesystem("memory")
        self.put(files, tmp_path / "out")
        yield files
        files.rm("/", recursive=True)

    def test_a_model_is_copied_once_and_again_when_it_has_changed(self, memory, model, tmp_path):
        url = "memory://hub/model"
        expected = model[1].predict(texts())
        assert crepe_dist.load(url).predict(texts()) == expected
        assert len([*(cache_folder() / "models").iterdir()]) == 1
        memory.rm("/hub/model/model.safetensors")
        assert crepe_dist.load(f"{url}/").predict(texts()) == expected
        other = make(tmp_path / "other", "paper", ENCODINGS["paper"], calibration={**CALIBRATION, "temperature": 0.9})
        predictor = crepe_dist.load(other, device="cpu")
        export(predictor, "crepe", tmp_path / "out", texts())
        self.put(memory, tmp_path / "out")
        assert crepe_dist.load(url).predict(texts()) == predictor.predict(texts())
        assert len([*(cache_folder() / "models").iterdir()]) == 2

    def test_mistakes_are_told(self, memory, tmp_path, complaint):
        for url in ("memory://hub/none", "memory://hub"):
            said = complaint("predict", url, "--text", "hello", cwd=tmp_path)
            assert f"{url}/model.json does not exist" in said
        assert "cannot be read" in complaint("predict", "nowhere://hub/none", "--text", "hello", cwd=tmp_path)
        memory.pipe("/hub/model/model.safetensors", b"another")
        said = complaint("predict", "memory://hub/model", "--text", "hello", cwd=tmp_path)
        assert "was altered: its SHA-256" in said


@pytest.fixture(scope="module")
def python(tmp_path_factory):
    """Python of an environment with this package and MLflow, whose libraries are newer than those of training."""
    folder = tmp_path_factory.mktemp("tools")
    run(["uv", "venv", "-q", "-p", sys.executable, "venv"], folder)
    path = str(folder / "venv" / "bin" / "python")
    wanted = [f"{ROOT}[remote]", "mlflow"]
    run(["uv", "pip", "install", "-q", "--no-config", "-p", path, *wanted], folder)
    return path


class TestTools:
    pytestmark = SLOW

    def test_mlflow(self, python, model, tmp_path):
        exported(model, "mlflow", tmp_path / "out")
        rows = {"columns": ["text"], "data": [["zig"], ["qua vex"], [""]]}
        (tmp_path / "rows.json").write_text(json.dumps({"dataframe_split": rows}))
        flags = ["--env-manager", "local", "-m", "out", "-i", "rows.json", "-o", "answers.json", "-t", "json"]
        run([python, "-m", "mlflow", "models", "predict", *flags], tmp_path)
        answers = json.loads((tmp_path / "answers.json").read_text())["predictions"]
        expected = model[1].predict(["zig", "qua vex"])
        assert [each["predicted_class"] for each in answers] == [*(each.label for each in expected), ""]
        found = [each["predicted_probability"] for each in answers[:2]]
        assert found == pytest.approx([each.probability for each in expected], abs=1e-6)
