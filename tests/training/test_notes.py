"""Notes before the first step, of train."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from crepe_dist import machine
from crepe_dist.networks.crepe.shape import CrepeShape
from crepe_dist.networks.ngrams.shape import NGramShape
from crepe_dist.networks.paper.shape import PaperShape
from crepe_dist.settings.config import parse
from crepe_dist.training.notes import (
    empty_classes,
    few_cores,
    few_steps,
    few_validation_rows,
    idle_gpus,
    little_memory,
)
from tests.conftest import PAPER as PAPER_FLAGS
from tests.conftest import QUICK, command, run

CREPE = CrepeShape(69, 192, 4, 6, 4096, reach=5, rows=1024, width=32, blocks=2, stride=1)
PAPER = PaperShape(69, 192, 4, 128, 512)
NGRAMS = NGramShape(69, 192, 4, 6, 1 << 20)
WHOLE = "a batch of 64 holds all 50 training rows, so an epoch is one step"


@pytest.mark.parametrize(
    ("flags", "rows", "shape", "what", "remedies"),
    [
        (["--epochs=5"], 16_000, PAPER, "", ""),
        (["--epochs=3"], 16_000, PAPER, "750 steps are few; ", "--epochs 4 or --batch-size 48"),
        (["--epochs=3"], 1_050, PAPER, "51 steps are few; ", "--epochs 59"),
        (["--epochs=5", "--start-epoch=2"], 16_000, PAPER, "750 steps are few; ", "--epochs 6 or --batch-size 48"),
        (["--epochs=1"], 16_000, NGRAMS, "", ""),
        (["--epochs=1"], 320, CREPE, "5 steps are few; ", "--epochs 4 or --batch-size 16"),
        (["--epochs=1"], 320, NGRAMS, "5 steps are few; ", "--epochs 4 or --batch-size 16"),
        (["--epochs=5"], 50, NGRAMS, f"{WHOLE}; 5 steps are few; ", "--epochs 20"),
        (["--epochs=50"], 50, NGRAMS, f"{WHOLE}\n", "--batch-size 7"),
        (["--epochs=5", "--overfit-batches=2"], 50, PAPER, "", ""),
        (["--epochs=1", "--init-from=runs/other"], 500, PAPER, "", ""),
    ],
)  # fmt: skip
def test_too_few_steps_and_too_large_batches(flags, rows, shape, what, remedies):
    said = few_steps(parse(flags), rows, shape)
    assert said.startswith(f"note: {what}" if what else "")
    assert said.endswith(f"  do:  {remedies}, unless this is only a trial" if what else "")
    assert bool(said) == bool(what)


def test_what_is_advised_is_enough():
    for rows in (1, 7, 50, 1_050, 16_000):
        for shape in (CREPE, PAPER, NGRAMS):
            epochs = shape.epochs_needed(rows, 64)
            assert "few" not in few_steps(parse([f"--epochs={epochs}"]), rows, shape)
            assert epochs == 1 or "few" in few_steps(parse([f"--epochs={epochs - 1}"]), rows, shape)


def test_classes_without_rows():
    counts = {"train": [3, 0, 5], "test": [0, 0, 1]}
    splits = dict.fromkeys(counts, SimpleNamespace(targets=None))
    data: Any = SimpleNamespace(
        classes=["a", "b", "c"], splits=splits, class_counts=lambda split: np.array(counts[split])
    )
    assert empty_classes(data, "train").startswith("note: 1 class has no train row and cannot be learnt: b\n  do:  ")
    assert "2 classes have no test row and are not measured: a and b\n" in empty_classes(data, "test")
    counts["train"] = [1, 1, 1]
    assert empty_classes(data, "train") == ""


def test_few_validation_rows():
    def said(**parts: int) -> str:
        data: Any = SimpleNamespace(splits={name: range(rows) for name, rows in parts.items()})
        return few_validation_rows(data)

    assert said(train=9, test=9) == said(train=9, validation=100) == ""
    assert said(validation=99).startswith("note: 99 validation rows are few to choose an epoch by: ")
    assert "a standard error of up to 6 points\n" in said(validation=99)
    assert "1 validation row is few" in said(validation=1)


def test_memory_and_cores(monkeypatch):
    monkeypatch.setattr(machine, "available_memory", lambda: 16 * PAPER.parameters)
    monkeypatch.setattr(machine, "cores", lambda: 2)
    assert little_memory(PAPER, 1) == few_cores(2) == ""
    assert "the parameters of 2 processes take about " in little_memory(PAPER, 2)
    assert "do:  start fewer processes, or lower model.filters" in little_memory(PAPER, 2)
    assert few_cores(3) == "note: 3 processes share 2 cores\n  do:  start at most 2 on this machine, which is faster"


@pytest.mark.parametrize(
    ("flags", "rows", "gpus", "remedy"),
    [
        ([], 100_000, 1, ""),
        ([], 100_000, 2, "--batch-size 256 --scale-with-batch true"),
        ([], 100_000, 4, "--batch-size 512 --scale-with-batch true"),
        ([], 16_383, 4, ""),
        (["--scale-with-batch=true"], 100_000, 4, "--batch-size 512"),
        (["--batch-size=255"], 100_000, 4, "--batch-size 512 --scale-with-batch true"),
        (["--batch-size=256"], 100_000, 4, ""),
    ],
)
def test_batches_too_small_for_several_gpus(flags, rows, gpus, remedy):
    said = idle_gpus(parse(flags), rows, gpus)
    assert said.endswith(f"  do:  {remedy}" if remedy else "")
    assert bool(said) == bool(remedy)
    batch = parse(flags).data.batch_size
    assert not said or said.startswith(f"note: a batch of {batch} documents is small for {gpus} GPUs: ")


def test_train_says_them_before_the_first_step(data, tmp_path):
    flags = ("--data", data, "--run-dir", tmp_path / "run", *QUICK, *PAPER_FLAGS, "--epochs=1")
    printed = run(command("train", *flags), tmp_path)
    note = printed.index("note: ")
    assert "are few; character-level convolutions need about 1,000" in printed[note:].splitlines()[0]
    assert printed.count("note: ") == 1
    assert note < printed.index("epoch 1 of ")
