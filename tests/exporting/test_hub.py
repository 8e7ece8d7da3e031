"""Model folders for the Hugging Face Hub, and models at URLs."""

import re
from pathlib import Path

import fsspec
import pytest
import yaml

import crepe_dist
from crepe_dist.exporting.exporter import export
from crepe_dist.files.folders import cache_folder
from tests.exporting.test_export import CALIBRATION, ENCODINGS, make, texts


@pytest.fixture
def model(tmp_path):
    """The checkpoint of a run, and its predictor."""
    path = make(tmp_path / "run", "ngrams", ENCODINGS["paper"], data={"name": "three <b>kinds</b>"})
    return path, crepe_dist.load(path, device="cpu")


def exported(model, form: str, out: Path) -> list[str]:
    files, difference = export(model[1], form, out, texts())
    assert difference == 0
    return [str(file.relative_to(out)) for file in files]


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
