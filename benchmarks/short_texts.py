"""Measure time and accuracy of networks on the short texts of the sample, in turns with fastText."""

from __future__ import annotations

import csv
import itertools
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import peers
import scaling
from commands import TRAIN, call
from short_texts_worker import EPOCHS, FASTTEXT

from crepe_dist.data.dataset import Dataset, open_dataset
from crepe_dist.files.json_file import read_json
from crepe_dist.native import library
from crepe_dist.predicting.loading import load
from crepe_dist.settings.options import Network

WORKER = Path(__file__).with_name("short_texts_worker.py")
KINDS: tuple[Network, ...] = ("ngrams", "crepe")  # ngrams only looks up rows, as fastText does
REPEATED = 20  # times that a file holds the texts of the test split
JOINED = 8  # texts of a class in a long document, so that processes have something to share
Figures = dict[str, float]


class Rows(NamedTuple):
    """Sizes of the benchmark.

    Attributes:
        rounds: number of measurements of each tool.
        per_class: rows of each class; ``None``: all.
        long: number of long documents, for the scaling of the n-gram network.
        crepe_epochs: epochs of Crepe, whose steps take longer than the n-gram network's.
        crepe_per_class: rows of each class for the scaling of Crepe.
    """

    rounds: int = 3
    per_class: int | None = None
    long: int = 8000
    crepe_epochs: int = EPOCHS
    crepe_per_class: int = 800


def run(rows: Rows, folder: Path, say: Callable[[str], None], python: str | None, patience: float) -> dict[str, Any]:
    """Measure whole commands on the sample.

    Args:
        rows: sizes.
        folder: scratch folder.
        say: function that prints progress.
        python: interpreter with fastText.
        patience: time limit of fastText in seconds. If it takes longer, it is left out.

    Returns:
        ``table``: for each tool the medians of ``seconds`` of the whole command (of fastText, to train and score),
        ``train_rate``, ``predict_rate`` in memory and our ``file_rate`` in documents/s, and ``accuracy``; and
        ``ratios``.
    """
    sample = prepare("sample", folder / "sample", "--max-per-class", rows.per_class)
    data = open_dataset(sample)
    _write_lines(data, folder)
    figures: dict[str, list[Figures]] = {}
    for number in range(rows.rounds):
        for kind in KINDS:
            epochs = rows.crepe_epochs if kind == "crepe" else EPOCHS
            measured = measure(kind, epochs, sample, folder / f"{kind}-{number}", data)
            figures.setdefault(_ours(kind), []).append(measured)
        if python and (number == 0 or FASTTEXT in figures):
            arguments = [str(python), "-I", str(WORKER), str(folder), str(library.num_threads())]
            try:
                printed = call(arguments, environment=peers.environment(), seconds=patience)
                figures.setdefault(FASTTEXT, []).append(json.loads(printed))
            except RuntimeError as error:
                say(f"{FASTTEXT} is left out: {error}")
    table = {
        tool: {name: statistics.median(row[name] for row in runs) for name in runs[0]} for tool, runs in figures.items()
    }
    ours = {kind: table[_ours(kind)] for kind in KINDS}
    ratios = {
        f"{kind}_predict_file_vs_memory": rates["file_rate"] / rates["predict_rate"] for kind, rates in ours.items()
    }
    if FASTTEXT in table:
        for kind, work in itertools.product(KINDS, ("train", "predict")):
            rate = f"{work}_rate"
            ratios[f"{kind}_{work}_vs_fasttext"] = ours[kind][rate] / table[FASTTEXT][rate]
    if not scaling.obstacle():
        # A step of the n-gram network on short texts is too short for processes to share.
        long = _long(data, rows.long, folder)
        few = prepare("sample", folder / "few", "--max-per-class", rows.crepe_per_class)
        ratios["ngrams_scaling_np2"] = _scaling("ngrams", 3, long, rows.rounds, folder)
        ratios["crepe_scaling_np2"] = _scaling("crepe", 1, few, rows.rounds, folder)
    return {"table": table, "ratios": ratios}


def _ours(kind: Network) -> str:
    return f"crepe_dist, {kind}"


def prepare(source: str, out: Path, *flags: Any) -> Path:
    """Prepare a source; a flag without a value (``None``) is left out."""
    options = [] if None in flags else map(str, flags)
    call([sys.executable, "-m", "crepe_dist", "prepare", source, "--out", str(out), *options])
    return out


def _train(kind: Network, epochs: int, data: Path, run_folder: Path) -> list[str]:
    """Make the command that trains a network."""
    folders = ["--data", str(data), "--run-dir", str(run_folder), "--device", "cpu"]
    return [*TRAIN, "--model", kind, "--epochs", str(epochs), *folders]


def _write_lines(data: Dataset, folder: Path) -> None:
    """Write the texts for the other tools: the characters that our network reads."""
    for name in ("train", "test"):
        split = data.splits[name]
        texts = map(data.encoder.decode, split.char_ids(np.arange(len(split))))
        lines = [f"__label__{label} {' '.join(text.split())}\n" for label, text in zip(split.labels.tolist(), texts)]
        # As documentation of fastText advises, in random order: it reads the file as it is.
        order = np.random.default_rng(0).permutation(len(lines))
        (folder / f"{name}.txt").write_text("".join(lines[row] for row in order), encoding="utf-8")


def measure(kind: Network, epochs: int, sample: Path, run_folder: Path, data: Dataset) -> Figures:
    """Train a network with the command, and predict the test split with it; see ``run`` for the figures."""
    began = time.perf_counter()
    call(_train(kind, epochs, sample, run_folder))
    seconds = time.perf_counter() - began
    predictor = load(run_folder)
    split = data.splits["test"]
    texts = [data.encoder.decode(char_ids) for char_ids in split.char_ids(np.arange(len(split)))]
    began = time.perf_counter()
    predictor.predict(texts)
    return {
        "epochs": epochs,
        "seconds": seconds,
        "train_rate": _train_rate(run_folder, len(data.splits["train"])),
        "predict_rate": len(texts) / (time.perf_counter() - began),
        "file_rate": _file_rate(run_folder, texts),
        "accuracy": float(read_json(run_folder / "result.json")["test_accuracy"]),
    }


def _train_rate(run_folder: Path, documents: int) -> float:
    """Return the documents/s of the epochs of a run, without start, scoring and report."""
    records = map(json.loads, (run_folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    epochs = [record["seconds"] for record in records if record["event"] == "epoch"]
    return float(len(epochs) * documents / sum(epochs))


def _file_rate(run_folder: Path, texts: list[str]) -> float:
    """Return the rows/s of the command that classifies a CSV file, with its start."""
    source, rows = run_folder / "texts.csv", texts * REPEATED
    with source.open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerows([["text"], *([text] for text in rows)])
    began = time.perf_counter()
    call([sys.executable, "-m", "crepe_dist", "predict", str(run_folder), "--file", str(source), "--format", "csv"])
    return len(rows) / (time.perf_counter() - began)


def _long(data: Dataset, documents: int, folder: Path) -> Path:
    """Prepare documents of several texts of a class."""
    split = data.splits["train"]
    generator = np.random.default_rng(0)
    source = folder / "long.tsv"
    with source.open("w", encoding="utf-8") as stream:
        for number in range(documents):
            label = number % len(data.classes)
            rows = generator.choice(np.flatnonzero(split.labels == label), JOINED)
            stream.write(f"{label}\t{' '.join(map(data.encoder.decode, split.char_ids(rows)))}\n")
    return prepare(str(source), folder / "long", "--header", "no", "--test", "0.05")


def _scaling(kind: Network, epochs: int, data: Path, rounds: int, folder: Path) -> float:
    """Return the rate of two processes relative to one; each process has one thread and one core."""
    documents = len(open_dataset(data).splits["train"])
    rates: dict[int, list[float]] = {1: [], 2: []}
    core = str(min(os.sched_getaffinity(0)))
    for number in range(rounds):
        for size, launcher in ((1, ["taskset", "--cpu-list", core]), (2, ["horovodrun", "-np", "2"])):
            run_folder = folder / f"{kind}-{size}-processes-{number}"
            train = [*_train(kind, epochs, data, run_folder), "--logging.report", "false"]
            call([*launcher, *train], environment=scaling.environment())
            rates[size].append(_train_rate(run_folder, documents))
    return statistics.median(rates[2]) / statistics.median(rates[1])
