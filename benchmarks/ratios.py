#!/usr/bin/env python3
"""Measure how fast this package is on this machine, compared with other implementations of the same work.

    uv run benchmarks/ratios.py --quick --json ratios.json
    CREPE_DIST_KERNELS=avx2 uv run benchmarks/ratios.py --json ratios.json

There are three comparisons:

- encoding, loading, training and prediction of the paper's network, with the method of the original notebook, PyTorch
  and ONNX Runtime;
- training in several processes that communicate, with the same number of independent processes;
- Crepe and the n-gram network on the sample, with fastText.

The implementations take turns, so that other load on the machine affects them equally. All figures are medians. The
first run installs the other tools into an environment in the cache. --quick takes at most five minutes.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import peers
import scaling
from commands import OutOfTime, limited
from rich.console import Console
from rich.table import Table
from short_texts import Rows
from short_texts import run as run_short_texts
from timing import alternate, rate

from crepe_dist import command_runner, hardware
from crepe_dist.data.char_encoder import ALPHABET, CharEncoder, CharIds
from crepe_dist.data.dataset import Dataset, open_dataset
from crepe_dist.distributed.device import check_mxnet_gpu, select_device
from crepe_dist.distributed.launch import import_mxnet
from crepe_dist.errors import UserError
from crepe_dist.files.folders import temporary_folder
from crepe_dist.formatting import percent
from crepe_dist.native import library
from crepe_dist.networks.paper.config import PaperConfig
from crepe_dist.preparing.preparation import prepare
from crepe_dist.preparing.sources import find_sources
from crepe_dist.preparing.spec import PreparationSpec
from crepe_dist.preparing.splitting import SplitOptions
from crepe_dist.settings.flags import Parser, check_output

ALL_ROWS = Rows()


@dataclass(frozen=True)
class Sizes:
    """Sizes of the benchmark; the defaults are the notebook's network.

    Args:
        rounds: number of measurements of each implementation.
        seconds: minimum duration of a measurement.
        batch_size: documents per step.
        rows: documents in the data set for the loader.
        short_texts: sizes of the benchmark on the sample.
        patience: time limit of a variant of another implementation, in seconds.
        limit: time limit of the rounds of the network, in seconds. The earlier measurements of scaling and of short
            texts have 30 % and 40 % of this limit.
    """

    rounds: int = 5
    seconds: float = 4.0
    batch_size: int = 128
    rows: int = 20_000
    feature_len: int = 1014
    filters: int = 256
    units: int = 1024
    classes: int = 7
    short_texts: Rows = ALL_ROWS
    patience: float = 200.0
    limit: float = 3600.0

    @property
    def shape(self) -> PaperConfig:
        return PaperConfig(len(ALPHABET), self.feature_len, self.classes, self.filters, self.units)


QUICK = Sizes(2, 0.5, rows=5000, short_texts=Rows(1, 1500, 3000, 1, 400), patience=20.0, limit=250.0)
TINY = Sizes(1, 0.05, batch_size=8, rows=200, feature_len=123, filters=16, units=32, short_texts=Rows(1, 20, 40, 1, 20))


def main() -> None:
    flags = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--quick", action="store_true", help="two short rounds instead of five long ones")
    flags.add_argument("--tiny", action="store_true", help="tiny sizes, only to check that the benchmark runs")
    flags.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to FILE")
    flags.add_argument("--device", choices=("auto", "gpu", "cpu"), default="auto")
    tools = flags.add_mutually_exclusive_group()
    tools.add_argument("--peers", metavar="PYTHON", help="Python interpreter that has the tools of peers.txt")
    tools.add_argument("--no-peers", action="store_true", help="skip PyTorch, ONNX Runtime and fastText")
    options = flags.parse_args()
    check_output(options.json, "--json")
    sizes = TINY if options.tiny else QUICK if options.quick else Sizes()
    python = None if options.no_peers else _python(options.peers)
    import_mxnet()
    with temporary_folder() as folder:
        figures = run(sizes, folder, select_device(options.device, check_mxnet_gpu), python)
    show(figures)
    if options.json is not None:
        flat = figures.pop("ratios") | figures
        options.json.write_text(json.dumps(flat, indent=2) + "\n", encoding="utf-8")


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _python(given: str | None) -> str | None:
    """Find or install an interpreter with the other tools; if that fails, print why and return ``None``."""
    if given is not None:
        if shutil.which(given) is None:
            raise UserError(f"--peers: {given} is not a program", remedy="give the path of a Python interpreter")
        return given
    try:
        return peers.interpreter(say)
    except UserError as error:
        say(f"{error.what}: {error.why}")
        return None


def run(sizes: Sizes, folder: Path, device: Any, python: str | None = None) -> dict[str, Any]:
    """Run all measurements.

    Args:
        folder: scratch folder.
        device: device that computes.
        python: interpreter with the other tools, which are only measured on a CPU.

    Returns:
        ``machine``, ``rates`` per second, ``ratios``, ``waiting`` (share of time that a step 100 times as fast as ours
        would wait for data), ``peers``, ``scaling``, and on a CPU ``short_texts``.
    """
    import workloads  # MXNet reads its number of threads on import

    end = time.monotonic() + sizes.limit
    on_cpu = device.device_type == "cpu"
    texts = _texts(sizes)
    say("encoding")
    rates = _encoding(texts, sizes)
    say("loading")
    split = _dataset(texts, sizes, folder).splits["train"]
    loading = partial(workloads.load, split, sizes.batch_size)
    rates |= alternate({"load": partial(rate, loading, sizes.seconds / 4)}, sizes.rounds)
    scaled = _scaling(sizes, device, 0.3 * sizes.limit)
    short: dict[str, Any] = {"table": {}, "ratios": {}}
    if on_cpu:
        say("short texts")
        try:
            with limited(0.4 * sizes.limit):
                short = run_short_texts(sizes.short_texts, folder, say, python, sizes.patience)
        except OutOfTime:
            say(f"short texts are skipped: not finished in {0.4 * sizes.limit:.0f} s")
    say("training and prediction")
    char_ids = split.char_ids(np.arange(sizes.batch_size))
    network, about = _network(texts, char_ids, sizes, device, python if on_cpu else None, end)
    rates |= network
    train, forward = _ours("train", rates), _ours("forward", rates)
    step = sizes.batch_size / max(train.values())
    waits = {"waiting": lambda: workloads.waiting(split, sizes.batch_size, step / 100)}
    waited = alternate(waits, sizes.rounds)["waiting"]
    ratios = {
        "train_vs_notebook": rates["train, ours, from text"] / rates["train, notebook, from text"],
        **peers.ratios(train, forward, rates),
        "encode_vs_notebook": rates["encode"] / rates["encode, notebook"],
        "loader_documents_per_second": rates["load"],
    }
    if "skipped" not in scaled:
        ratios["scaling_np2"] = scaling.weak_ratio(scaled, 2)
    return {
        "machine": {**hardware.describe(), "device": str(device)},
        "rates": rates,
        "ratios": ratios | short["ratios"],
        "waiting": waited,
        "peers": about,
        "scaling": scaled,
        "short_texts": short["table"],
    }


def _encoding(texts: list[str], sizes: Sizes) -> dict[str, float]:
    import workloads

    few = texts[: max(1, len(texts) // 200)]

    def encode_like_notebook() -> int:
        for text in few:
            workloads.notebook_encode(text, sizes.feature_len)
        return len(few)

    encode = partial(workloads.encode, texts, CharEncoder(feature_len=sizes.feature_len))
    runs: dict[str, Callable[[], int]] = {"encode": encode, "encode, notebook": encode_like_notebook}
    return alternate({name: partial(rate, work, sizes.seconds / 4) for name, work in runs.items()}, sizes.rounds)


def _network(
    texts: list[str], char_ids: CharIds, sizes: Sizes, device: Any, python: str | None, until: float
) -> tuple[dict[str, float], dict[str, Any]]:
    """Measure training and forward passes; return rates, and the peers' report."""
    import workloads

    from crepe_dist.distributed.process_group import ProcessGroup

    shape, batch = sizes.shape, workloads.batch_of(char_ids, sizes.classes)
    first = texts[: 2 * sizes.batch_size]
    labels = [number % sizes.classes for number in range(len(first))]
    works: dict[str, Callable[[], int]] = {
        "train, notebook, from text": workloads.NotebookTraining(first, labels, shape, sizes.batch_size, device)
    }
    for precision in workloads.precisions(shape, device):
        training = workloads.Training(shape, ProcessGroup(), device, precision)
        works[f"train, ours, {precision}"] = partial(training.repeat, batch, 1)
        works[f"forward, ours, {precision}"] = workloads.Forward(shape, device, batch, precision)
    encoding = CharEncoder(feature_len=sizes.feature_len)
    works["train, ours, from text"] = partial(training.on_texts, first, labels, encoding, sizes.batch_size)
    runs: dict[str, Callable[[], float]] = {name: partial(rate, work, sizes.seconds) for name, work in works.items()}
    with peers.started(python, sizes, library.num_threads(), sizes.seconds, sizes.patience, say) as others:
        rates = alternate(runs | others.runs, sizes.rounds, until)
        rates = {name: value for name, value in rates.items() if not np.isnan(value)}
    return rates, others.about


def _ours(kind: str, rates: dict[str, float]) -> dict[str, float]:
    """Select our rates, by precision."""
    start = f"{kind}, ours, "
    return {
        name[len(start) :]: rate for name, rate in rates.items() if name.startswith(start) and "from text" not in name
    }


def _scaling(sizes: Sizes, device: Any, limit: float) -> dict[str, Any]:
    """Measure scaling (see ``scaling.run``) in so many seconds, or return the reason as ``skipped``."""
    reason = scaling.obstacle(device.device_type)
    if not reason:
        say("scaling")
        try:
            with limited(limit):
                return scaling.run(sizes.shape, sizes.batch_size, sizes.rounds, sizes.seconds, device.device_type)
        except OutOfTime:
            reason = f"not finished in {limit:.0f} s"
    say(f"scaling is skipped: {reason}")
    return {"skipped": reason}


def _texts(sizes: Sizes) -> list[str]:
    """Generate random documents as long as reviews: 430 characters on average, in words."""
    generator = np.random.default_rng(0)
    letters = np.array(list("etaoinshrdlucm fwyp vbgk "))
    lengths = np.clip(generator.lognormal(5.8, 0.8, sizes.rows), 20, 3000).astype(int)
    return ["".join(generator.choice(letters, length)) for length in lengths]


def _dataset(texts: list[str], sizes: Sizes, folder: Path) -> Dataset:
    source = folder / "texts.tsv"
    source.write_text("".join(f"{n % sizes.classes}\t{text}\n" for n, text in enumerate(texts)), encoding="utf-8")
    out = folder / "prepared"
    encoding = CharEncoder(feature_len=sizes.feature_len)
    prepare(find_sources([str(source)]), out, PreparationSpec(encoding, SplitOptions(test=0.0)), processes=1)
    return open_dataset(out)


def show(figures: dict[str, Any]) -> None:
    """Print the figures as tables."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=160)
    console.print(", ".join(f"{name} {value}" for name, value in figures["machine"].items()), soft_wrap=True)
    for title, key, form in (("per second", "rates", ",.0f"), ("ours / theirs, higher is better", "ratios", ".2f")):
        table = Table("", title, box=None, pad_edge=False)
        for name, value in figures[key].items():
            table.add_row(name, format(value, form))
        console.print(table)
    waited = percent(figures["waiting"])
    console.print(f"with steps 100 times as fast, training would wait for data {waited} of the time")
    for title, rows in (
        ("scaling", figures["scaling"].get("table", [])),
        ("short texts", [{"tool": tool, **row} for tool, row in figures["short_texts"].items()]),
    ):
        if rows:
            table = Table(*rows[0], title=title, title_justify="left", box=None, pad_edge=False)
            for row in rows:
                cells = [row.get(name, "") for name in rows[0]]
                table.add_row(*(f"{cell:,.4g}" if isinstance(cell, float) else str(cell) for cell in cells))
            console.print(table)


if __name__ == "__main__":
    command_runner.run(main)
