#!/usr/bin/env python3
"""Check and measure training on the GPUs of this host: what their owner runs once. It takes about ten minutes.

    uv run --no-sync benchmarks/gpu.py --json gpu.json
    uv run --no-sync benchmarks/gpu.py --json gpu.json --only doctor correctness parity

doctor       `crepe doctor`, and the links between the GPUs
correctness  losses and parameters of each network and engine, against our kernels on the CPU
parity       SHA-256 of the parameters that 1, 2, 4, 8 processes train with our own engine: all the same
resume       a killed process: how soon the others end, and whether the resumed run is bit-identical
throughput   documents/s of short runs of the default network, with 128 documents a GPU, on long texts and on short
             ones: both engines on one GPU and on several, beside the exported module in PyTorch, eager and compiled

What cannot run is in the tables with its error. The JSON holds no names of users or hosts, except in messages of
failing programs: read it before you send it.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import random
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import peers
from commands import TRAIN, OutOfTime, call, limited, started

from crepe_dist import command, machine
from crepe_dist.cuda import driver
from crepe_dist.data.dataset import open_dataset
from crepe_dist.errors import UserError
from crepe_dist.files import read_json, sha256, write_json
from crepe_dist.model import parameters
from crepe_dist.model.compressed import Packed
from crepe_dist.settings.flags import check_output

WORKER = Path(__file__).with_name("torch_worker.py")
CREPE = (sys.executable, "-m", "crepe_dist")
QUIET = ("--logging.tensorboard=false", "--logging.report=false")
# Steps too small for rounding errors to grow, and the same dropout for all engines: none.
STEADY = (
    "--optimizer=sgd", "--learning-rate=0.005", "--schedule=constant", "--dropout=0",
)  # fmt: skip
NETWORKS = {"crepe": (), "ngrams": (), "paper": ("--size=tiny",)}
OWN, ENGINES = "own", ("own", "mxnet")
FLOAT32, AUTO = "float32", "auto"
TOLERANCE = {FLOAT32: 1e-4, AUTO: 2e-2}  # of the losses, in nats
LONG, SHORT = "long", "short"  # texts of 1,014 characters, and the sample's of 192 at most
LENGTH = 1014
Row = dict[str, Any]
Rows = Iterator[Row]


@dataclass(frozen=True)
class Bench:
    """Sizes of the benchmark; the defaults are those for GPUs.

    Attributes:
        folder: folder of the data sets and runs.
        device: gpu or cpu.
        worlds: numbers of processes, ascending, from 1.
        python: interpreter with PyTorch; empty: PyTorch is left out.
        without_python: the reason.
        rows: documents of an epoch, about.
        batch: documents of a process and step.
        seconds: duration of a measurement of PyTorch.
        sizes: flags of the default network.
    """

    folder: Path
    device: str
    worlds: list[int]
    python: str
    without_python: str
    rows: int = 8192
    batch: int = 128
    seconds: float = 3.0
    sizes: tuple[str, ...] = ()

    def train(self, name: str, processes: int, *flags: str, data: str = SHORT, device: str = "") -> list[str]:
        """Make the command of a short run in the folder ``name``; ``flags`` take precedence over its settings."""
        where = ("--data", str(self.folder / data), "--device", device or self.device, "--run-dir", str(self.run(name)))
        launch = ["horovodrun", "-np", str(processes)] if processes > 1 else []
        sizes = () if "--model=paper" in flags else self.sizes
        return [*launch, *TRAIN, *where, *sizes, *QUIET, "--epochs=1", f"--batch-size={self.batch}", *flags]

    def run(self, name: str) -> Path:
        return self.folder / "runs" / name

    def prepare(self) -> None:
        """Make both data sets: long texts are those of several documents of a class."""
        per_class = str(max(10, self.rows // 3))  # a fifth is the test split
        call([*CREPE, "prepare", "sample", "--max-per-class", per_class, "--out", str(self.folder / SHORT)])
        data, generator = open_dataset(self.folder / SHORT), random.Random(0)
        labels = data.splits["train"].labels.tolist()
        texts: list[list[str]] = [[] for _ in data.classes]
        for row, label in enumerate(labels):
            texts[label].append(data.text("train", row))
        self.texts(SHORT).write_text("".join(f"{line}\n" for of_class in texts for line in of_class), encoding="utf-8")
        rows = [(data.classes[label], _joined(texts[label], generator)) for label in labels]
        self.texts(LONG).write_text("".join(f"{text}\n" for _, text in rows), encoding="utf-8")
        table = self.folder / "long.csv"
        with table.open("w", newline="", encoding="utf-8") as stream:
            csv.writer(stream).writerows(rows)
        call([*CREPE, "prepare", str(table), "--feature-len", str(LENGTH), "--out", str(self.folder / LONG)])

    def texts(self, data: str) -> Path:
        """File of the texts of a data set, one a line."""
        return self.folder / f"{data}.txt"


def _joined(texts: list[str], generator: random.Random) -> str:
    parts: list[str] = []
    while sum(map(len, parts)) < LENGTH:
        parts.append(generator.choice(texts))
    return " ".join(" ".join(parts).split())


SMALL: dict[str, Any] = {
    "rows": 30, "batch": 4, "seconds": 0.1, "sizes": ("--buckets=4096", "--embeddings=1024"),
}  # fmt: skip


def doctor(bench: Bench) -> Rows:
    lines = call([*CREPE, "doctor"], codes=(0, 1)).splitlines()
    links = call(["nvidia-smi", "topo", "-m"]) if shutil.which("nvidia-smi") else ""
    yield {"verdict": lines[-1], "lines": lines, "links": links.splitlines()}


def correctness(bench: Bench) -> Rows:
    for network, sizes in NETWORKS.items():
        flags = (f"--model={network}", *sizes, *STEADY)
        call(bench.train(network, 1, *flags, "--precision=float32", device="cpu"))
        for engine in ENGINES:
            for precision in (FLOAT32, AUTO):
                case = (bench, f"{network}-{engine}-{precision}", (*flags, f"--kernels={engine}"), precision)
                row = {"network": network, "engine": engine, "precision": precision}
                yield {**row, **tried(partial(against, *case, bench.run(network)))}


def against(bench: Bench, name: str, flags: tuple[str, ...], precision: str, reference: Path) -> Row:
    """Train, and compare with the run ``reference``."""
    call(bench.train(name, 1, *flags, f"--precision={precision}"))
    return compared(bench.run(name), reference, TOLERANCE[precision])


def parity(bench: Bench) -> Rows:
    if bench.worlds[-1] == 1:
        raise UserError("it needs several processes", "there is one GPU, or Horovod is not installed")
    alone = ""
    for processes in bench.worlds:
        call(bench.train(f"parity-{processes}", processes, f"--kernels={OWN}"))
        digest = sha256(trained(bench.run(f"parity-{processes}")))
        alone = alone or digest
        yield {"processes": processes, "sha256": digest, "ok": digest == alone}


def throughput(bench: Bench) -> Rows:
    worlds = {OWN: bench.worlds, "mxnet": sorted({1, bench.worlds[-1]})}
    for data in (LONG, SHORT):
        for engine, sizes in worlds.items():
            for processes in sizes:
                for precision in (AUTO, FLOAT32) if processes == 1 else (AUTO,):
                    row = {"texts": data, "by": engine, "processes": processes, "precision": precision}
                    yield {**row, **tried(partial(ours, bench, data, processes, engine, precision))}
        for precision in (AUTO, FLOAT32):
            yield theirs(bench, data, precision, compiled=False)
    for data in (LONG, SHORT):  # last, because the compilation takes a minute
        yield theirs(bench, data, AUTO, compiled=True)


def ours(bench: Bench, data: str, processes: int, engine: str, precision: str) -> Row:
    """Measure the steps of a run of at least an epoch, and of more if it has too few of them."""
    name = f"{data}-{engine}-{precision}-{processes}"
    flags = (f"--kernels={engine}", f"--precision={precision}")
    batch = (f"--batch-size={bench.batch * processes}", f"--epochs={max(1, processes // 2)}")
    began = time.monotonic()
    call(bench.train(name, processes, *flags, *batch, data=data))
    steps = [record["milliseconds"] for record in _steps(bench.run(name))]
    step = statistics.median(steps[len(steps) // 2 :])
    rate, seconds = 1000 * processes * bench.batch / step, time.monotonic() - began
    computes = read_json(bench.run(name) / "result.json")["provenance"]["computes"]
    return {"rate": rate, "step_ms": step, "first_ms": steps[0], "run_s": seconds, "computes": computes}


def theirs(bench: Bench, data: str, precision: str, compiled: bool) -> Row:
    by = f"PyTorch, {'compiled' if compiled else 'eager'}"
    row = {"texts": data, "by": by, "processes": 1, "precision": precision}
    return {**row, **tried(partial(torch, bench, data, precision, compiled))}


def torch(bench: Bench, data: str, precision: str, compiled: bool) -> Row:
    """Measure PyTorch's steps, with the exported module of a run on the CPU."""
    if not bench.python:
        raise UserError("PyTorch was left out", bench.without_python)
    made, folder = f"{data}-made", bench.folder / f"{data}-module"
    if not folder.exists():
        call(bench.train(made, 1, data=data, device="cpu"))
        call([*CREPE, "export", str(bench.run(made)), "--format", "pytorch", "--out", str(folder)])
    request: Row = {"folder": str(folder), "texts": str(bench.texts(data)), "device": bench.device}
    request |= {"precision": precision, "compiled": compiled, "batch": bench.batch, "seconds": bench.seconds}
    # -I: import no module of the worker's folder in place of one of PyTorch's.
    out = call([bench.python, "-I", str(WORKER), json.dumps(request)], environment=peers.environment())
    return dict(json.loads(out.splitlines()[-1]))


def resume(bench: Bench) -> Rows:
    """Kill the last rank after the first epoch, and run the same command again."""
    processes, run = bench.worlds[-1], bench.run("killed")
    flags = ("--epochs=5", "--checkpoint.every=100")
    call(bench.train("unbroken", processes, *flags))
    with started(bench.train(run.name, processes, *flags)) as (process, output):
        found: dict[int, int] = {}
        while len(found) < processes or not list(run.glob("checkpoints/*.params")):
            if process.poll() is not None:
                raise RuntimeError(f"it ended by itself: {output[1].read_text(errors='replace')[-1000:]}")
            found = found if len(found) == processes else ranks(run)
            time.sleep(0.01)
        os.kill(found[processes - 1], signal.SIGKILL)
        killed = time.monotonic()
        while process.poll() is None or ranks(run):
            time.sleep(0.1)
        seconds = time.monotonic() - killed
    call(bench.train(run.name, processes, *flags))
    digests = [sha256(trained(each)) for each in (run, bench.run("unbroken"))]
    same = digests[0] == digests[1]
    yield {"processes": processes, "seconds until all ended": seconds, "sha256": digests[0], "ok": same}


# Each section, with its share of the time; what it leaves is the next one's.
SECTIONS: dict[str, tuple[Callable[[Bench], Rows], float]] = {
    "doctor": (doctor, 0.1), "correctness": (correctness, 0.2), "parity": (parity, 0.1), "resume": (resume, 0.1),
    "throughput": (throughput, 0.5),
}  # fmt: skip


def compared(run: Path, reference: Path, tolerance: float) -> Row:
    """Compare two finished runs that recorded every step.

    Args:
        tolerance: largest difference of two losses that is ``ok``, in nats.

    Returns:
        ``steps``, how many both runs recorded; the largest difference of the losses of the first, the second and any
        of them; of ``parameters`` at the end; and ``ok``.
    """
    losses, references = ({step["step"]: step["loss"] for step in _steps(each)} for each in (run, reference))
    common = sorted(losses.keys() & references.keys())
    apart = [abs(losses[step] - references[step]) for step in common]
    arrays, expected = _parameters(run), _parameters(reference)
    worst = max(float(np.abs(arrays[name] - expected[name]).max()) for name in expected)
    row = {"steps": len(common), "first": apart[0], "second": apart[1], "any": max(apart), "parameters": worst}
    return {**row, "tolerance": tolerance, "ok": max(apart) <= tolerance}


def _steps(run: Path) -> list[Row]:
    records = map(json.loads, (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    return [record for record in records if record["event"] == "step"]


def trained(run: Path) -> Path:
    """Return the file of the parameters that a finished run chose."""
    return Path(run / read_json(run / "result.json")["checkpoint"])


def _parameters(run: Path) -> Any:
    arrays = parameters.load(trained(run))
    return {name: array.checked().unpack() if isinstance(array, Packed) else array for name, array in arrays.items()}


def ranks(run: Path) -> dict[int, int]:
    """Map the rank of each process that trains in that folder to its process id."""
    pids = {}
    for path in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            words, settings = ((path / name).read_text(errors="replace").split("\0") for name in ("cmdline", "environ"))
            if words[:3] == list(TRAIN) and str(run) in words:
                variables = dict(setting.partition("=")[::2] for setting in settings)
                pids[int(variables.get("HOROVOD_RANK", 0))] = int(path.name)
    return pids


def measured(section: Callable[[], Iterable[Row]], seconds: float) -> Row:
    """Run a section for at most ``seconds``; return its rows and, if it failed, the error."""
    rows: list[Row] = []
    begun, error = time.monotonic(), ""
    try:
        with limited(seconds):
            for row in section():
                rows.append(row)
                print(", ".join(f"{name} {shown}" for name, shown in cells(row)), file=sys.stderr, flush=True)
    except OutOfTime:
        error = f"not finished after {seconds:.0f} s"
    except Exception as failure:
        error = _in_a_line(failure)
    return {"seconds": time.monotonic() - begun, **({"error": error} if error else {}), "rows": rows}


def tried(work: Callable[[], Row]) -> Row:
    """Return the row, or an error in its place, so that the other rows of a section are measured."""
    try:
        return work()
    except Exception as failure:
        return {"error": _in_a_line(failure)}


def _in_a_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())


def cells(row: Row) -> Iterator[tuple[str, str]]:
    """Yield names and values of a row for display; the JSON has the rest."""
    for name, value in row.items():
        if isinstance(value, (str, int, float)):
            yield name, f"{value:,.4g}" if isinstance(value, float) else str(value)[:200]


def table(title: str, section: Row) -> str:
    """Format a section as a Markdown table."""
    names = list(dict.fromkeys(name for row in section["rows"] for name, _ in cells(row)))
    shown = [dict(cells(row)) for row in section["rows"]]
    rows = [names, ["---"] * len(names), *([row.get(name, "") for name in names] for row in shown)]
    lines = [f"| {' | '.join(row)} |" for row in rows if names]
    return "\n".join([f"\n## {title}, {section['seconds']:.0f} s\n", *lines, section.get("error", "")])


def parser() -> argparse.ArgumentParser:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--json", type=Path, default=Path("gpu.json"), metavar="FILE", help="default: gpu.json")
    flags.add_argument(
        "--device", choices=("gpu", "cpu"), default="gpu", help="default: gpu; cpu tries the benchmark, at small sizes"
    )
    flags.add_argument("--small", action="store_true", help="small sizes, to try the benchmark")
    flags.add_argument("--processes", type=int, help="most processes to start; default: the number of GPUs, 2 on a CPU")
    flags.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS), help="sections; default: all")
    flags.add_argument("--minutes", type=float, default=10.0, help="longest duration of all sections; default: 10")
    others = flags.add_mutually_exclusive_group()
    others.add_argument("--peers", metavar="PYTHON", help="Python interpreter with PyTorch; default: install one")
    others.add_argument("--no-peers", action="store_true", help="skip PyTorch")
    return flags


def main() -> None:
    given = parser().parse_args()
    check_output(given.json, "--json")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the started commands are ended
    places = 2 if given.device == "cpu" else driver.count()
    most = max(1, given.processes or places)
    worlds = sorted({1, most, *(size for size in (2, 4, 8) if size < most)}) if shutil.which("horovodrun") else [1]
    report: Row = {"machine": machine.describe(), "versions": machine.versions(), "device": given.device}
    report |= {"gpus": [driver.name_of(number) for number in range(driver.count())], "worlds": worlds, "sections": {}}
    needed = [name for name in given.only if places and name != "doctor"]
    with tempfile.TemporaryDirectory() as folder:
        python = _python(given) if "throughput" in needed else ("", "")
        sizes = SMALL if given.small or given.device == "cpu" else {}
        bench = Bench(Path(folder), given.device, worlds, *python, **sizes)
        if needed:
            bench.prepare()
        of_all, end = sum(SECTIONS[name][1] for name in given.only), time.monotonic()
        for name in given.only:
            print(f"{name} …", file=sys.stderr, flush=True)
            section, share = SECTIONS[name]
            section = section if name in ("doctor", *needed) else without_a_gpu
            end += 60 * given.minutes * share / of_all
            report["sections"][name] = measured(partial(section, bench), end - time.monotonic())
            write_json(given.json, report)  # now, in case a later section is killed
    for name, section in report["sections"].items():
        print(table(name, section))
    print(f"\nwritten to {given.json}")


def without_a_gpu(bench: Bench) -> Rows:
    raise UserError("there is no GPU", "the driver shows none", "see the section doctor")


def _python(given: argparse.Namespace) -> tuple[str, str]:
    """Return an interpreter with PyTorch, installed if necessary; or the reason why there is none."""
    if given.no_peers or given.peers:
        return given.peers or "", "--no-peers"
    try:
        return peers.interpreter(partial(print, file=sys.stderr)), ""
    except UserError as error:
        return "", f"{error.what}: {error.why}"


if __name__ == "__main__":
    command.run(main)
