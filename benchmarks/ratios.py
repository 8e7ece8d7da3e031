#!/usr/bin/env python3
"""Compare the speed of this package with the speed of other implementations of the same work on this machine.

    uv run benchmarks/ratios.py --quick --json ratios.json
    CREPE_DIST_KERNELS=avx2 uv run benchmarks/ratios.py --json ratios.json

There are three comparisons:

- Encoding, loading, training and prediction with the paper's network are compared with the original notebook, PyTorch
  and ONNX Runtime.
- Distributed training is compared with the same number of independent processes.
- Crepe and the n-gram network are compared with fastText on the sample.

The implementations take turns, so that other load on the machine affects them equally. All figures are medians. The
first run of the script installs the other tools into an environment in the user's cache folder. With --quick, the
measurements take at most five minutes.
"""

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
    """Sizes of the benchmark. The default network is the network of the notebook.

    Args:
        rounds: number of measurements of each implementation.
        seconds: minimum duration of a measurement.
        batch_size: documents per step.
        rows: number of documents in the data set that the loader reads.
        short_texts: sizes of the benchmark on the sample.
        patience: time limit of one variant of another implementation, in seconds.
        limit: time limit of the script, in seconds. After this time, no round of the network starts. The measurements
            of scaling and of short texts come first. Their time limits are 30 % and 40 % of ``limit``.
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
    tools.add_argument(
        "--peers", metavar="PYTHON", help="Python interpreter of an environment with the packages of peers.txt"
    )
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
    """Print progress to standard error."""
    print(text, file=sys.stderr, flush=True)


def _python(path: str | None) -> str | None:
    """Return an interpreter with the other tools: ``path``, or the one in the cache, which is installed if necessary.

    If the installation fails, print the reason and return ``None``.
    """
    if path is not None:
        if shutil.which(path) is None:
            raise UserError(f"--peers: {path} is not a program", remedy="specify the path of a Python interpreter")
        return path
    try:
        return peers.interpreter(say)
    except UserError as error:
        say(f"{error.what}: {error.why}")
        return None


def run(sizes: Sizes, folder: Path, device: Any, python: str | None = None) -> dict[str, Any]:
    """Run all measurements.

    Args:
        folder: scratch folder.
        device: device on which the networks are computed.
        python: interpreter with the other tools, which are measured only on a CPU.

    Returns:
        A dictionary with these keys:

        * ``machine``: description of the machine;
        * ``rates``: documents or texts per second;
        * ``ratios``: our rates divided by the rates of the other implementations, and the rate of the loader;
        * ``waiting``: fraction of the training time, 0 to 1, that would be spent waiting for data if training steps
          were 100 times as fast;
        * ``peers``: see ``peers.Peers.about``;
        * ``scaling``: see ``scaling.run``;
        * ``short_texts``: the table of ``short_texts.run``, empty on a GPU.
    """
    import workloads  # imported after import_mxnet, because MXNet reads its number of threads on import

    end = time.monotonic() + sizes.limit
    on_cpu = device.device_type == "cpu"
    texts = _texts(sizes)
    say("encoding")
    rates = _encoding(texts, sizes)
    say("loading")
    split = _dataset(texts, sizes, folder).splits["train"]
    loading = partial(workloads.load, split, sizes.batch_size)
    rates |= alternate({"load": partial(rate, loading, sizes.seconds / 4)}, sizes.rounds)
    scaling_figures = _scaling(sizes, device, 0.3 * sizes.limit)
    short_texts: dict[str, Any] = {"table": {}, "ratios": {}}
    if on_cpu:
        say("short texts")
        try:
            with limited(0.4 * sizes.limit):
                short_texts = run_short_texts(sizes.short_texts, folder, say, python, sizes.patience)
        except OutOfTime:
            say(f"short texts are skipped: they did not finish within {0.4 * sizes.limit:.0f} s")
    say("training and prediction")
    char_ids = split.char_ids(np.arange(sizes.batch_size))
    network_rates, peers_report = _network(texts, char_ids, sizes, device, python if on_cpu else None, end)
    rates |= network_rates
    train, forward = _ours("train", rates), _ours("forward", rates)
    step = sizes.batch_size / max(train.values())
    waiting_runs = {"waiting": lambda: workloads.waiting(split, sizes.batch_size, step / 100)}
    waiting_fraction = alternate(waiting_runs, sizes.rounds)["waiting"]
    ratios = {
        "train_vs_notebook": rates["train, ours, from text"] / rates["train, notebook, from text"],
        **peers.ratios(train, forward, rates),
        "encode_vs_notebook": rates["encode"] / rates["encode, notebook"],
        "loader_documents_per_second": rates["load"],
    }
    if "skipped" not in scaling_figures:
        ratios["scaling_np2"] = scaling.weak_ratio(scaling_figures, 2)
    return {
        "machine": {**hardware.describe(), "device": str(device)},
        "rates": rates,
        "ratios": ratios | short_texts["ratios"],
        "waiting": waiting_fraction,
        "peers": peers_report,
        "scaling": scaling_figures,
        "short_texts": short_texts["table"],
    }


def _encoding(texts: list[str], sizes: Sizes) -> dict[str, float]:
    """Measure the texts per second that this package and the notebook encode."""
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
    """Measure training and forward passes. Return the rates, and ``peers.Peers.about``."""
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
    works["train, ours, from text"] = partial(training.train_on_texts, first, labels, encoding, sizes.batch_size)
    runs: dict[str, Callable[[], float]] = {name: partial(rate, work, sizes.seconds) for name, work in works.items()}
    with peers.started(python, sizes, library.num_threads(), sizes.seconds, sizes.patience, say) as other_tools:
        rates = alternate(runs | other_tools.runs, sizes.rounds, until)
        rates = {name: value for name, value in rates.items() if not np.isnan(value)}
    return rates, other_tools.about


def _ours(kind: str, rates: dict[str, float]) -> dict[str, float]:
    """Return our rates of ``kind``, which is ``train`` or ``forward``, by precision."""
    prefix = f"{kind}, ours, "
    return {
        name[len(prefix) :]: rate for name, rate in rates.items() if name.startswith(prefix) and "from text" not in name
    }


def _scaling(sizes: Sizes, device: Any, limit: float) -> dict[str, Any]:
    """Measure scaling (see ``scaling.run``) within ``limit`` seconds, or return why it was ``skipped``."""
    reason = scaling.obstacle(device.device_type)
    if not reason:
        say("scaling")
        try:
            with limited(limit):
                return scaling.run(sizes.shape, sizes.batch_size, sizes.rounds, sizes.seconds, device.device_type)
        except OutOfTime:
            reason = f"it did not finish within {limit:.0f} s"
    say(f"scaling is skipped: {reason}")
    return {"skipped": reason}


def _texts(sizes: Sizes) -> list[str]:
    """Generate random documents with 430 characters on average, which is a typical length of reviews."""
    generator = np.random.default_rng(0)
    letters = np.array(list("etaoinshrdlucm fwyp vbgk "))
    lengths = np.clip(generator.lognormal(5.8, 0.8, sizes.rows), 20, 3000).astype(int)
    return ["".join(generator.choice(letters, length)) for length in lengths]


def _dataset(texts: list[str], sizes: Sizes, folder: Path) -> Dataset:
    """Prepare the texts as a data set without a test split."""
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
    for title, key, number_format in (
        ("per second", "rates", ",.0f"),
        ("ours / theirs, higher is better", "ratios", ".2f"),
    ):
        table = Table("", title, box=None, pad_edge=False)
        for name, value in figures[key].items():
            table.add_row(name, format(value, number_format))
        console.print(table)
    waiting = percent(figures["waiting"])
    console.print(f"if training steps were 100 times as fast, {waiting} of the time would be spent waiting for data")
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
