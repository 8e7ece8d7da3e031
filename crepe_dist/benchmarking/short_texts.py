"""The n-gram network on the sample's short texts, in turns with fastText and scikit-learn: time and accuracy."""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from crepe_dist.benchmarking import commands, scaling
from crepe_dist.benchmarking.peers_environment import clean
from crepe_dist.benchmarking.short_runs import TRAIN
from crepe_dist.benchmarking.short_texts_worker import PEERS
from crepe_dist.data.dataset import Dataset, open_dataset
from crepe_dist.distributed.launch import horovodrun
from crepe_dist.files import read_json
from crepe_dist.native import library
from crepe_dist.predicting.predictor import load

WORKER = Path(__file__).with_name("short_texts_worker.py")
OURS = "crepe_dist"
NGRAMS = ("--model.network", "ngrams")  # as fastText, it only looks up rows
FASTTEXT = "fastText, 2-6 characters"  # reads what our network reads
JOINED = 8  # texts of a class in a long document, so that processes have something to share
Figures = dict[str, float]


@dataclass(frozen=True)
class Rows:
    """Sizes of the benchmark.

    Args:
        rounds: number of measurements of each tool.
        per_class: rows of each class; ``None``: all.
        long: number of long documents.
    """

    rounds: int = 3
    per_class: int | None = None
    long: int = 8000


def run(rows: Rows, folder: Path, say: Callable[[str], None], python: str | None) -> dict[str, Any]:
    """Measure whole commands on the sample.

    Args:
        rows: sizes.
        folder: scratch folder.
        say: function that prints progress.
        python: interpreter with fastText and scikit-learn.

    Returns:
        ``table``: for each tool the medians of ``seconds`` of the whole command (of the peers, to train and score),
        ``train_rate`` and ``predict_rate`` in documents/s, and ``accuracy``; and ``ratios``.
    """
    say("short texts")
    few = ["--max-per-class", str(rows.per_class)] if rows.per_class else []
    sample = folder / "sample"
    commands.call([sys.executable, "-m", "crepe_dist.prepare", "sample", "--out", str(sample), *few])
    data = open_dataset(sample)
    _write_lines(data, folder)
    found: dict[str, list[Figures]] = {}
    for number in range(rows.rounds):
        found.setdefault(OURS, []).append(_ours(sample, folder / f"run-{number}", data))
        for peer in [peer for peer in PEERS if python and (number == 0 or peer in found)]:
            arguments = [str(python), "-I", str(WORKER), peer, str(folder), str(library.threads())]
            try:
                printed = commands.call(arguments, environment=clean(dict(os.environ)))
            except RuntimeError as error:
                say(f"{peer} is left out: {error}")
                continue
            found.setdefault(peer, []).append(json.loads(printed))
    table = {tool: _medians(each) for tool, each in found.items()}
    ratios = {}
    if FASTTEXT in table:
        for kind in ("train", "predict"):
            ratios[f"ngrams_{kind}_vs_fasttext"] = table[OURS][f"{kind}_rate"] / table[FASTTEXT][f"{kind}_rate"]
    if not scaling.obstacle():
        ratios["ngrams_scaling_np2"] = _scaling(data, rows, folder)
    return {"table": table, "ratios": ratios}


def _write_lines(data: Dataset, folder: Path) -> None:
    """Write the texts for the peers: the characters that our network reads."""
    for name in ("train", "test"):
        part = data.parts[name]
        texts = map(data.encoding.decode, part.codes(np.arange(len(part))))
        lines = [f"__label__{label} {' '.join(text.split())}\n" for label, text in zip(part.labels.tolist(), texts)]
        # As documentation of fastText advises, in random order: it reads the file as it is.
        order = np.random.default_rng(0).permutation(len(lines))
        (folder / f"{name}.txt").write_text("".join(lines[row] for row in order), encoding="utf-8")


def _ours(sample: Path, run_folder: Path, data: Dataset) -> Figures:
    began = time.perf_counter()
    commands.call([*TRAIN, *NGRAMS, "--data", str(sample), "--run-dir", str(run_folder), "--device", "cpu"])
    seconds = time.perf_counter() - began
    predictor = load(run_folder)
    part = data.parts["test"]
    texts = [data.encoding.decode(codes) for codes in part.codes(np.arange(len(part)))]
    began = time.perf_counter()
    predictor.predict(texts)
    return {
        "seconds": seconds,
        "train_rate": _train_rate(run_folder, len(data.parts["train"])),
        "predict_rate": len(texts) / (time.perf_counter() - began),
        "accuracy": float(read_json(run_folder / "result.json")["test_accuracy"]),
    }


def _train_rate(run_folder: Path, documents: int) -> float:
    """Return the documents/s of the epochs of a run, without start, scoring and report."""
    records = map(json.loads, (run_folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    epochs = [record["seconds"] for record in records if record["event"] == "epoch"]
    return float(len(epochs) * documents / sum(epochs))


def _scaling(data: Dataset, rows: Rows, folder: Path) -> float:
    """Return the rate of two processes relative to one, on long documents; each process has one thread and one core."""
    part = data.parts["train"]
    generator = np.random.default_rng(0)
    source = folder / "long.tsv"
    with source.open("w", encoding="utf-8") as stream:
        for number in range(rows.long):
            label = number % len(data.classes)
            chosen = generator.choice(np.flatnonzero(part.labels == label), JOINED)
            stream.write(f"{label}\t{' '.join(map(data.encoding.decode, part.codes(chosen)))}\n")
    long = folder / "long"
    prepare = [sys.executable, "-m", "crepe_dist.prepare", str(source), "--out", str(long), "--header", "no"]
    commands.call([*prepare, "--test", "0.05"])
    documents = len(open_dataset(long).parts["train"])
    rates: dict[int, list[float]] = {1: [], 2: []}
    core = str(min(os.sched_getaffinity(0)))
    for number in range(rows.rounds):
        for size, launcher in ((1, ["taskset", "--cpu-list", core]), (2, [str(horovodrun()), "-np", "2"])):
            run_folder = folder / f"long-{size}-{number}"
            arguments = [
                *launcher,
                *TRAIN,
                *NGRAMS,
                "--data",
                str(long),
                "--run-dir",
                str(run_folder),
                "--epochs",
                "3",
                "--device",
                "cpu",
            ]
            commands.call(arguments, environment=scaling.environment())
            rates[size].append(_train_rate(run_folder, documents))
    return statistics.median(rates[2]) / statistics.median(rates[1])


def _medians(each: list[Figures]) -> Figures:
    return {name: statistics.median(figures[name] for figures in each) for name in each[0]}
