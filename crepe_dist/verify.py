"""Command that trains a run again and compares the parameters: ``python -m crepe_dist.verify RUN``."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from crepe_dist import command
from crepe_dist.errors import UserError, visible
from crepe_dist.files import read_json, sha256
from crepe_dist.native import library
from crepe_dist.runs.run_record import RunRecord, open_run
from crepe_dist.settings import arguments
from crepe_dist.supervising.training_process import QUIET, failure, training
from crepe_dist.wording import counted

EXAMPLES = """  python -m crepe_dist.verify runs/reviews-1f2e3d4c5b
  python -m crepe_dist.verify runs/reviews-1f2e3d4c5b --data data/reviews
"""
THREADS = "OMP_NUM_THREADS"
MXNET = "MXNet's operators"


def parser() -> arguments.Parser:
    flags = arguments.parser(
        "verify",
        "Train a finished run again, with its settings, on as many processes and threads, and with the same build of "
        "the kernels where this machine has it. Then compare the parameters of every epoch, bit by bit. The run stays "
        "as it is.",
        EXAMPLES,
    )
    flags.add_argument("run", type=Path, metavar="RUN", help="folder of a finished run")
    flags.add_argument("--data", type=Path, metavar="DIR", help="prepared folder; default: the run's")
    return flags


def main() -> None:
    given = parser().parse_args()
    record = open_run(given.run)
    if not record.made:
        raise UserError(f"{given.run} cannot be verified", "it is not finished", "train it to its end first")
    data = record.dataset(given.data)
    made, processes = record.made, int(record.made["processes"])
    for note in pin(record):
        print(f"note: {note}", flush=True)
    print(f"trains {visible(record.name)} again, on {counted(processes, 'process', 'processes')}", flush=True)
    with TemporaryDirectory(prefix="crepe-verify-") as name:
        folder = Path(name)
        settings = {
            **record.settings,
            "data.source": str(data.folder.absolute()),
            "run_dir": str(folder / "run"),
            "checkpoint.keep_last": max(1, len(record.history.epochs)),
            **QUIET,
        }
        with training(settings, folder, processes) as process:
            code = process.wait()
        if code:
            raise failure(folder, code)
        again = open_run(folder / "run")
        differing = []
        for epoch, before, now in compared(given.run, folder / "run"):
            same = before == now
            print(f"epoch {epoch}: {'the same bits' if same else 'other bits'}, SHA-256 {before[:16]}", flush=True)
            if not same:
                differing.append(epoch)
    if differing:
        changed = "; ".join(changes(made, again.made))
        raise UserError(
            f"{given.run} has other parameters from epoch {differing[0]} on",
            changed or "of what a run records about its machine, nothing differs",
            "verify it on a machine like the one that trained it; else do not trust the run",
        )
    print(f"{visible(str(given.run))} is what its data and its settings give")


def pin(record: RunRecord) -> Iterator[str]:
    """Let trainings use as many threads, and the build of the kernels, as the run did; yield what cannot be had."""
    threads = record.made["environment"].get(THREADS)
    if threads:
        os.environ[THREADS] = str(threads)
    build = kernels(record.made)
    if build in library.runnable():
        os.environ[library.SWITCH] = build
    elif build != MXNET:
        yield f"the run was computed by the kernels {build}, which this machine lacks: expect other bits"
    if not record.made["device"].startswith("cpu"):
        yield "the run was trained on a GPU: equal bits are promised on CPUs only"


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    """Describe what differs in the records of where and how two runs were computed."""
    flat = [{"kernels": kernels(made), "device": made["device"], **made["environment"]} for made in (before, now)]
    for name in {**flat[0], **flat[1]}:
        was, is_now = (each.get(name, "unknown") for each in flat)
        if was != is_now:
            yield f"{name}: {was} then, {is_now} now"


def kernels(made: Mapping[str, Any]) -> str:
    """Return the build of the kernels that computed a run."""
    found = re.search(r"own kernels \((\w+)\)", made["computes"])
    return found[1] if found else MXNET


def compared(run: Path, other: Path) -> Iterator[tuple[int, str, str]]:
    """Yield the epochs that both runs have checkpoints of, with the SHA-256 of the parameters of each."""
    before, now = digests(run), digests(other)
    for epoch in sorted(before.keys() & now.keys()):
        yield epoch, before[epoch], now[epoch]


def digests(run: Path) -> dict[int, str]:
    """Return the SHA-256 of the parameters of each epoch whose checkpoint was kept."""
    paths = (path for path in (run / "checkpoints").glob("*.json") if path.with_suffix(".params").is_file())
    return {read_json(path)["epoch"]: sha256(path.with_suffix(".params")) for path in paths}


if __name__ == "__main__":
    command.run(main)
