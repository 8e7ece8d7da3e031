"""The loss of a split is computed from the probabilities that ``predict`` gives for its texts."""

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import log_loss

import crepe_dist
from crepe_dist.model.calibration import softmax
from crepe_dist.runs import checkpoint
from tests.conftest import NGRAMS, QUICK, needs_kernels, records, run, train
from tests.helpers.programs import supervised_command

pytestmark = needs_kernels

WORDS = {"big": "huge giant vast", "old": "ancient antique aged", "red": "crimson scarlet ruby"}
LEARNING = ("--optimizer=adam", "--learning-rate=0.01", "--epochs=4", "--refit=false")
# The default network has a weight of its convolutions, which the validation split fits.
WAYS: dict[str, tuple[str, ...]] = {
    "several": NGRAMS,
    "one": NGRAMS,
    "smoothed": ('--class-weights={"big": 3}',),
}


def table(rows: int, seed: int, *, several: bool) -> pd.DataFrame:
    """Make a table of texts. A quarter of the texts have the labels of another text."""
    generator = random.Random(seed)
    labels = [[name for name in WORDS if generator.random() < 0.4] for _ in range(rows)]
    labels = labels if several else [[generator.choice(list(WORDS))] for _ in range(rows)]
    words = [" ".join(generator.choice(WORDS[name].split()) for name in each) for each in labels]
    noisy = [generator.choice(labels) if generator.random() < 0.25 else each for each in labels]
    cells = map(json.dumps, noisy) if several else (each[0] for each in noisy)
    return pd.DataFrame({"label": list(cells), "text": [f"{word} house {row}" for row, word in enumerate(words)]})


@pytest.fixture(scope="module", params=list(WAYS))
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run, and its rows: ``train.csv``, ``validation.csv`` and ``test.csv``."""
    folder, several = tmp_path_factory.mktemp("loss"), request.param == "several"
    for seed, (name, rows) in enumerate({"train": 400, "validation": 150, "test": 150}.items()):
        table(rows, seed, several=several).to_csv(folder / f"{name}.csv", index=False)
    files: dict[str, Any] = {name: folder / f"{name}.csv" for name in ("validation", "test")}
    labels: Any = "multilabel" if several else "single"
    crepe_dist.prepare(folder / "train.csv", folder / "data", **files, labels=labels, feature_len=64)
    train("--data=data", "--run-dir=run", *QUICK, *LEARNING, *WAYS[request.param], cwd=folder)
    return folder


def loss_of_predictions(folder: Path, name: str, printed_by: Any) -> float:
    """Compute the log loss of the probabilities of ``predict``; with several labels, the sum over the classes."""
    printed_by("predict", "run", f"--file={name}.csv", "--format=jsonl", "--top=3", "--out=out.jsonl", cwd=folder)
    rows = [json.loads(line) for line in (folder / "out.jsonl").read_text().splitlines()]
    shares = np.array(
        [[{each["class"]: each["probability"] for each in row["top"]}[name] for name in WORDS] for row in rows]
    )
    labels = pd.read_csv(folder / f"{name}.csv").label
    if "labels" not in rows[0]:
        return float(log_loss(labels, shares, labels=list(WORDS)))
    return sum(
        float(log_loss([label in json.loads(each) for each in labels], shares[:, place], labels=[False, True]))
        for place, label in enumerate(WORDS)
    )


@pytest.mark.parametrize("split", ["validation", "test"])
def test_the_loss_is_that_of_the_probabilities_that_one_gets(folder, split, printed_by):
    shown = printed_by("evaluate", "run", f"--split={split}", "--json=one.json", "--html=one.html", cwd=folder)
    found, wanted = json.loads((folder / "one.json").read_text()), loss_of_predictions(folder, split, printed_by)
    assert found["loss"] == pytest.approx(wanted, abs=1e-4)
    assert f"loss {found['loss']:.4f}" in shown
    result, epochs = json.loads((folder / "run" / "result.json").read_text()), records(folder / "run", "epoch")
    (reported,) = (epoch for epoch in epochs if epoch["epoch"] == result["epoch"])
    assert reported[f"{split}_loss"] == pytest.approx(found["loss"], abs=1e-4)
    if split == "test":
        assert result["test_loss"] == reported["test_loss"]
        stored = checkpoint.read_scores(checkpoint.resolve_model(str(folder / "run")))
        assert stored["test"].loss == result["test_loss"]
    if "micro_f1" in found:
        assert not [name for name in (*found, *result, *reported) if "uncalibrated" in name]
        return
    model: Any = crepe_dist.load(folder / "run")
    texts = pd.read_csv(folder / f"{split}.csv")
    logits = model.logits(model.encoding.encode(list(texts.text)))
    raw = log_loss(
        texts.label, softmax(logits * np.float32(model.calibration.temperature), np.float64), labels=model.classes
    )
    assert model.calibration.temperature != 1
    assert abs(raw - wanted) > 1e-3
    assert found["uncalibrated_loss"] == pytest.approx(raw, abs=1e-4)
    assert reported[f"{split}_uncalibrated_loss"] == pytest.approx(raw, abs=1e-4)
    before = f"{found['uncalibrated_loss']:.4f} before temperature {model.calibration.temperature:.2f}"
    assert f"loss {found['loss']:.4f} ({before})" in shown
    if split == "test":
        assert result["test_uncalibrated_loss"] == reported["test_uncalibrated_loss"]


def test_any_number_of_processes_gives_the_same_losses(folder, printed_by):
    printed_by("evaluate", "run", "--json=one.json", cwd=folder)
    run(supervised_command("evaluate", "run", "--json=two.json", processes=2), folder)
    one, two = (json.loads((folder / f"{name}.json").read_text()) for name in ("one", "two"))
    for name in ("loss", *["uncalibrated_loss"] * ("uncalibrated_loss" in one)):
        assert one[name] == pytest.approx(two[name], abs=1e-6)
