"""Warnings of ``crepe train`` before the first step."""

from types import SimpleNamespace
from typing import Any

import numpy as np

from crepe_dist import hardware
from crepe_dist.data.targets import SINGLE_LABEL, Targets
from crepe_dist.networks.crepe.config import CrepeConfig
from crepe_dist.networks.ngrams.config import NGramConfig
from crepe_dist.networks.paper.config import PaperConfig
from crepe_dist.settings.config import parse
from crepe_dist.training.startup_messages import (
    startup_warnings,
    warn_empty_classes,
    warn_few_cores,
    warn_few_steps,
    warn_small_shards,
)

CREPE = CrepeConfig(69, 192, 4, 6, 4096, 36, 1024, embedding_maxn=5, embedding_rows=1024, width=32, blocks=2, stride=1)
PAPER = PaperConfig(69, 192, 4, 128, 512)
NGRAMS = NGramConfig(69, 192, 4, 6, 1 << 20, 36, 1 << 18)


def test_what_is_advised_is_enough():
    for rows in (1, 7, 50, 1_050, 16_000):
        for shape in (CREPE, PAPER, NGRAMS):
            epochs = shape.epochs_needed(rows, 64)
            assert not warn_few_steps(parse([f"--epochs={epochs}"]), rows, shape)
            assert epochs == 1 or f"--epochs {epochs}" in warn_few_steps(parse([f"--epochs={epochs - 1}"]), rows, shape)
    assert not warn_few_steps(parse(["--epochs=1", "--init-from=runs/other"]), 500, PAPER)


def test_classes_without_rows():
    def noted(*labels: int) -> str:
        targets = Targets(SINGLE_LABEL, np.array(labels, np.int32), 3)
        data: Any = SimpleNamespace(classes=["a", "b", "c"], splits={"train": SimpleNamespace(targets=targets)})
        return warn_empty_classes(data)

    assert noted(0, 0, 2).split("\n")[0].endswith("of 1 class: b")
    assert noted(0, 1, 2) == ""


def test_cores(monkeypatch):
    monkeypatch.setattr(hardware, "num_cores", lambda: 2)
    assert warn_few_cores(2) == ""
    assert (
        warn_few_cores(3) == "note: 3 processes share 2 cores\n  do:  start at most 2 on this machine, which is faster"
    )


def test_a_batch_for_many_processes():
    def warning(processes: int, rows: int = 10**6, batch_size: int = 1024, *, is_on_gpu: bool = False) -> str:
        data: Any = SimpleNamespace(splits={"train": range(rows)})
        config = parse([f"--batch-size={batch_size}", "--epochs=3"])
        return warn_small_shards(config, data, processes, is_on_gpu=is_on_gpu)

    assert warning(128) == warning(1, batch_size=1) == warning(10**5, batch_size=16_384) == ""
    assert "--batch-size 2048" in warning(256)
    assert "at most 64 documents" in (small := warning(16, rows=500))
    assert "at most 8 processes" in small
    assert "2 of 5 processes never get a document" in warning(5, batch_size=3)
    assert warning(16, is_on_gpu=True) == ""
    assert "--batch-size 256" in warning(4, batch_size=4, is_on_gpu=True)
    assert "at most 1 document\n" in warning(1, batch_size=1, is_on_gpu=True)


def test_a_host_without_enough_cores_and_a_process_without_documents_are_both_noted(monkeypatch):
    def notes(*flags: str) -> str:
        engine = SimpleNamespace(config=NGRAMS, device=SimpleNamespace(device_type="cpu"))
        targets = Targets(SINGLE_LABEL, np.arange(10**5, dtype=np.int32) % 4, 4)
        splits = {"train": type("Split", (list,), {"targets": targets})(range(10**5))}
        data = SimpleNamespace(classes=list("abcd"), splits=splits, manifest={"splits": {}})
        group = SimpleNamespace(size=5, local_size=5)
        context: Any = SimpleNamespace(config=parse(["--epochs=3", *flags]), data=data, engine=engine, group=group)
        return "\n".join(startup_warnings(context))

    monkeypatch.setattr(hardware, "num_cores", lambda: 2)
    assert "5 processes share 2 cores" in notes()
    assert "documents" not in notes()
    assert "5 processes share 2 cores" in (both := notes("--batch-size=3"))
    assert "2 of 5 processes never get a document" in both
