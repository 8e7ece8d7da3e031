"""Compare the speed and the accuracy of Crepe, the n-gram network and fastText on the short texts of the sample."""

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
from commands import TRAIN, call, prepare_sample
from short_texts_worker import EPOCHS, FASTTEXT

from crepe_dist.data.dataset import Dataset, open_dataset
from crepe_dist.files.json_file import read_json
from crepe_dist.native import library
from crepe_dist.predicting.loading import load
from crepe_dist.settings.options import Network

WORKER = Path(__file__).with_name("short_texts_worker.py")
NETWORKS: tuple[Network, ...] = ("ngrams", "crepe")  # ngrams looks up embeddings of n-grams, as fastText does
REPETITIONS = 20  # copies of the test split in the CSV file for `crepe predict`
TEXTS_PER_DOCUMENT = 8  # texts of one class that form a long document
Figures = dict[str, float]


class Rows(NamedTuple):
    """Sizes of the benchmark.

    Attributes:
        rounds: number of measurements of each tool.
        per_class: number of rows of each class; ``None`` means all rows.
        long: number of long documents that measure the scaling of the n-gram network.
        crepe_epochs: number of epochs of Crepe. Its steps take longer than the steps of the n-gram network.
        crepe_per_class: number of rows of each class that measure the scaling of Crepe.
    """

    rounds: int = 3
    per_class: int | None = None
    long: int = 8000
    crepe_epochs: int = EPOCHS
    crepe_per_class: int = 800


def run(rows: Rows, folder: Path, say: Callable[[str], None], python: str | None, patience: float) -> dict[str, Any]:
    """Measure complete commands on the sample.

    Args:
        rows: sizes of the benchmark.
        folder: scratch folder.
        say: function that prints progress.
        python: interpreter with fastText. If it is ``None``, fastText is left out.
        patience: time limit of fastText in seconds. If it takes longer, it is left out.

    Returns:
        A dictionary with two items:

        * ``table``: medians of each tool. ``seconds`` is the time of the training command or, for fastText, of training
          and prediction. ``train_rate``, ``predict_rate`` (in memory) and ``file_rate`` (`crepe predict` of a file) are
          documents/s. ``accuracy`` is the accuracy on the test split, 0 to 1.
        * ``ratios``: our rates divided by the rates of fastText, our ``file_rate`` divided by our ``predict_rate``, and
          the scaling of two processes.
    """
    sample = prepare_sample(folder / "sample", rows.per_class)
    data = open_dataset(sample)
    _write_lines(data, folder)
    figures: dict[str, list[Figures]] = {}
    for number in range(rows.rounds):
        for kind in NETWORKS:
            epochs = rows.crepe_epochs if kind == "crepe" else EPOCHS
            network_figures = measure(kind, epochs, sample, folder / f"{kind}-{number}", data)
            figures.setdefault(_tool(kind), []).append(network_figures)
        if python and (number == 0 or FASTTEXT in figures):
            arguments = [str(python), "-I", str(WORKER), str(folder), str(library.num_threads())]
            try:
                output = call(arguments, environment=peers.environment(), seconds=patience)
                figures.setdefault(FASTTEXT, []).append(json.loads(output))
            except RuntimeError as error:
                say(f"{FASTTEXT} is left out: {error}")
    table = {
        tool: {name: statistics.median(row[name] for row in runs) for name in runs[0]} for tool, runs in figures.items()
    }
    ours = {kind: table[_tool(kind)] for kind in NETWORKS}
    ratios = {
        f"{kind}_predict_file_vs_memory": rates["file_rate"] / rates["predict_rate"] for kind, rates in ours.items()
    }
    if FASTTEXT in table:
        for kind, work in itertools.product(NETWORKS, ("train", "predict")):
            rate = f"{work}_rate"
            ratios[f"{kind}_{work}_vs_fasttext"] = ours[kind][rate] / table[FASTTEXT][rate]
    if not scaling.obstacle():
        # A step of the n-gram network on short texts takes too little time to benefit from a second process.
        long_documents = _prepare_long(data, rows.long, folder)
        small_sample = prepare_sample(folder / "few", rows.crepe_per_class)
        ratios["ngrams_scaling_np2"] = _scaling("ngrams", 3, long_documents, rows.rounds, folder)
        ratios["crepe_scaling_np2"] = _scaling("crepe", 1, small_sample, rows.rounds, folder)
    return {"table": table, "ratios": ratios}


def _tool(kind: Network) -> str:
    """Return the name of a network in the table."""
    return f"crepe_dist, {kind}"


def _train_command(kind: Network, epochs: int, data: Path, run_folder: Path) -> list[str]:
    """Return the command that trains a network."""
    folders = ["--data", str(data), "--run-dir", str(run_folder), "--device", "cpu"]
    return [*TRAIN, "--model", kind, "--epochs", str(epochs), *folders]


def _write_lines(data: Dataset, folder: Path) -> None:
    """Write the texts for fastText. They consist of the characters that our networks read."""
    for name in ("train", "test"):
        split = data.splits[name]
        texts = map(data.encoder.decode, split.char_ids(np.arange(len(split))))
        lines = [f"__label__{label} {' '.join(text.split())}\n" for label, text in zip(split.labels.tolist(), texts)]
        # fastText reads the lines in the order of the file. Its documentation recommends a random order.
        order = np.random.default_rng(0).permutation(len(lines))
        (folder / f"{name}.txt").write_text("".join(lines[row] for row in order), encoding="utf-8")


def measure(kind: Network, epochs: int, sample: Path, run_folder: Path, data: Dataset) -> Figures:
    """Train a network with `crepe train`, and predict the test split. See ``run`` for the figures."""
    start = time.perf_counter()
    call(_train_command(kind, epochs, sample, run_folder))
    seconds = time.perf_counter() - start
    predictor = load(run_folder)
    split = data.splits["test"]
    texts = [data.encoder.decode(char_ids) for char_ids in split.char_ids(np.arange(len(split)))]
    start = time.perf_counter()
    predictor.predict(texts)
    return {
        "epochs": epochs,
        "seconds": seconds,
        "train_rate": _train_rate(run_folder, len(data.splits["train"])),
        "predict_rate": len(texts) / (time.perf_counter() - start),
        "file_rate": _file_rate(run_folder, texts),
        "accuracy": float(read_json(run_folder / "result.json")["test_accuracy"]),
    }


def _train_rate(run_folder: Path, documents: int) -> float:
    """Return the documents/s of a run's epochs. The start, the evaluation and the report do not count."""
    records = map(json.loads, (run_folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    epochs = [record["seconds"] for record in records if record["event"] == "epoch"]
    return float(len(epochs) * documents / sum(epochs))


def _file_rate(run_folder: Path, texts: list[str]) -> float:
    """Return the rows/s of `crepe predict` for a CSV file. The start of the command counts."""
    source, rows = run_folder / "texts.csv", texts * REPETITIONS
    with source.open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerows([["text"], *([text] for text in rows)])
    start = time.perf_counter()
    call([sys.executable, "-m", "crepe_dist", "predict", str(run_folder), "--file", str(source), "--format", "csv"])
    return len(rows) / (time.perf_counter() - start)


def _prepare_long(data: Dataset, documents: int, folder: Path) -> Path:
    """Prepare a data set of long documents. Each document consists of several texts of one class."""
    split = data.splits["train"]
    generator = np.random.default_rng(0)
    source = folder / "long.tsv"
    with source.open("w", encoding="utf-8") as stream:
        stream.write("label\ttext\n")
        for number in range(documents):
            label = number % len(data.classes)
            rows = generator.choice(np.flatnonzero(split.labels == label), TEXTS_PER_DOCUMENT)
            stream.write(f"{label}\t{' '.join(map(data.encoder.decode, split.char_ids(rows)))}\n")
    out = folder / "long"
    call([sys.executable, "-m", "crepe_dist", "prepare", str(source), "--out", str(out), "--test", "0.05"])
    return out


def _scaling(kind: Network, epochs: int, data: Path, rounds: int, folder: Path) -> float:
    """Return the rate of two processes divided by the rate of one. Each process has one thread and one core."""
    documents = len(open_dataset(data).splits["train"])
    rates: dict[int, list[float]] = {1: [], 2: []}
    core = str(min(os.sched_getaffinity(0)))
    for number in range(rounds):
        for size, launcher in ((1, ["taskset", "--cpu-list", core]), (2, ["horovodrun", "-np", "2"])):
            run_folder = folder / f"{kind}-{size}-processes-{number}"
            train = [*_train_command(kind, epochs, data, run_folder), "--logging.report", "false"]
            call([*launcher, *train], environment=scaling.environment())
            rates[size].append(_train_rate(run_folder, documents))
    return statistics.median(rates[2]) / statistics.median(rates[1])
