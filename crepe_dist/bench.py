"""Command that benchmarks this package against other implementations: ``python -m crepe_dist.bench``."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from crepe_dist import command
from crepe_dist.benchmarking import peers_environment, projection_flags, projection_table
from crepe_dist.distributed.device import pick
from crepe_dist.distributed.launch import detect, import_mxnet
from crepe_dist.errors import UserError
from crepe_dist.scratch import scratch
from crepe_dist.settings import arguments
from crepe_dist.wording import percent

EXAMPLES = """  python -m crepe_dist.bench --quick
  python -m crepe_dist.bench --json speed.json
  python -m crepe_dist.bench --project 8,64,512 --link-gbps 100 --step-ms 15
"""


def parser() -> arguments.Parser:
    flags = arguments.parser(
        "bench",
        "Measure encoding, loading, training and prediction of the paper's network on this machine, in turns with "
        "the original notebook's method, the fastest matrix product, PyTorch and ONNX Runtime. Also measure training "
        "in several processes, in turns with as many independent ones, and Crepe and the n-gram network on the sample, "
        "in turns with fastText and scikit-learn. All figures are medians. Only --json writes a file; the "
        "first run also installs these peers into an environment in the cache. With --project, predict "
        "the scaling instead.",
        EXAMPLES,
    )
    flags.add_argument(
        "--quick",
        action="store_true",
        help="two rounds of short measurements instead of five long ones, in five minutes at most",
    )
    flags.add_argument("--tiny", action="store_true", help="tiny sizes, only to check that the benchmark runs")
    flags.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to FILE")
    arguments.add_device(flags)
    others = flags.add_mutually_exclusive_group()
    others.add_argument(
        "--peers",
        metavar="PYTHON",
        help="Python interpreter with PyTorch, ONNX, ONNX Runtime, fastText and scikit-learn",
    )
    others.add_argument("--no-peers", action="store_true", help="skip PyTorch, ONNX Runtime, fastText and scikit-learn")
    projection_flags.add(flags)
    return flags


def main() -> None:
    given = parser().parse_args()
    if given.project is not None:
        _project(given)
        return
    projection_flags.refuse(given)
    arguments.check_output(given.json, "--json")
    python = None if given.no_peers else _peers(given.peers)

    import_mxnet(detect())
    # Imported late: MXNet reads the number of threads at import, and --help does not need it.
    from crepe_dist.benchmarking.suite import QUICK, TINY, Sizes, run

    device = pick(given.device)
    sizes = TINY if given.tiny else QUICK if given.quick else Sizes()
    with scratch() as folder:
        figures = run(sizes, folder, _say, device, python)
    _show(figures)
    if given.json is not None:
        flat = figures.pop("ratios") | figures
        given.json.write_text(json.dumps(flat, indent=2) + "\n", encoding="utf-8")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _peers(given: str | None) -> str | None:
    """Find or install an interpreter with PyTorch and ONNX Runtime; on failure, print why and return ``None``."""
    if given is not None:
        if (found := shutil.which(given)) is None:
            raise UserError(
                f"--peers: {given} is not a program", remedy="give the path of a Python interpreter, or remove --peers"
            )
        return found
    try:
        return peers_environment.interpreter(_say)
    except UserError as error:
        _say(f"{error.what}: {error.why}")
        return None


def _project(given: argparse.Namespace) -> None:
    sizes = projection_flags.world_sizes(given)
    import_mxnet(detect())
    from crepe_dist.benchmarking.suite import Sizes, shape_of, training_rate  # as in main

    def gradient() -> int:
        return 4 * shape_of(Sizes()).parameters

    def rate(batch: int) -> float:
        return training_rate(Sizes(rounds=1, seconds=2.0, batch_size=batch), pick(given.device))

    job = projection_flags.job(given, rate, gradient)
    projection_table.show(job, projection_flags.cluster(given), sizes, given.overlap, _console())


def _console() -> Console:
    """Make a console that is wide enough for the tables if the output is not a terminal."""
    console = Console()
    return console if console.is_terminal else Console(width=max(console.width, 160))


def _show(figures: dict[str, Any]) -> None:
    console = _console()
    console.print(", ".join(f"{name} {value}" for name, value in figures["machine"].items()), soft_wrap=True)
    for title, key, form in (("per second", "rates", ",.0f"), ("ours / theirs, higher is better", "ratios", ".2f")):
        table = Table("", title, box=None, pad_edge=False)
        table.columns[1].justify = "right"
        for name, value in figures[key].items():
            table.add_row(name, format(value, form))
        console.print(table)
    console.print(
        f"with steps 100 times as fast, training would wait for data {percent(figures['waiting'])} of the time"
    )
    _show_scaling(console, figures["scaling"])
    if figures["short_texts"]:
        _show_short_texts(console, figures["short_texts"])


def _show_short_texts(console: Console, table: dict[str, dict[str, float]]) -> None:
    shown = Table("the sample", "epochs", "seconds", "accuracy", "train/s", "predict/s", box=None, pad_edge=False)
    for name, each in table.items():
        rates = (f"{each[kind]:,.0f}" for kind in ("train_rate", "predict_rate"))
        epochs = f"{each['epochs']:.0f}" if "epochs" in each else ""
        shown.add_row(name, epochs, f"{each['seconds']:.1f}", percent(each["accuracy"]), *rates)
    console.print(shown)


def _show_scaling(console: Console, scaling: dict[str, Any]) -> None:
    if "skipped" in scaling:
        console.print(f"scaling was not measured: {scaling['skipped']}")
        return
    table = Table("scaling", box=None, pad_edge=False)
    for name in ("processes", "batch", "documents/s", "independent", "ratio", "efficiency"):
        table.add_column(name, justify="right", overflow="fold")
    for row in scaling["table"]:
        table.add_row(
            row["scaling"],
            str(row["processes"]),
            str(row["batch"]),
            f"{row['rate']:,.0f}",
            f"{row['independent']:,.0f}",
            f"{row['ratio']:.2f}",
            f"{row['efficiency']:.2f}",
        )
    console.print(table)
    for size, milliseconds in scaling["allreduce_ms"].items():
        console.print(
            f"all-reduce of {scaling['gradient_bytes']:,} bytes over {size} processes: {milliseconds:.1f} ms",
            soft_wrap=True,
        )


if __name__ == "__main__":
    command.run(main)
