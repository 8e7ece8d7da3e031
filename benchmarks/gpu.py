#!/usr/bin/env python3
"""Check and measure training on the GPUs of this host: what their owner runs once.

    uv run --no-sync benchmarks/gpu.py --json gpu.json
    uv run --no-sync benchmarks/gpu.py --json gpu.json --only doctor correctness parity
    uv run --no-sync benchmarks/gpu.py --json cpu.json --device cpu

doctor       `crepe doctor`, and the links between the GPUs
correctness  losses and parameters of the first steps, against one process on the CPU
parity       the same of N processes, against one process on the same device
throughput   documents/s with 1, 2, 4, 8 processes, the time of an all-reduce, and what it adds to a step; beside it, on
             one GPU and on all, PyTorch, eager and compiled, with DistributedDataParallel
resume       a killed process: how soon the others end, and whether the resumed run is bit-identical

The JSON holds no names of users or hosts, except in messages of failing programs: read it before you send it.
"""

from __future__ import annotations

import argparse
import json
import os
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
import scaling
from commands import TRAIN, OutOfTime, call, limited, started
from timing import in_turns

from crepe_dist import command, machine
from crepe_dist.data.alphabet import ALPHABET
from crepe_dist.diagnosis import inventory
from crepe_dist.distributed import cuda
from crepe_dist.distributed.crash_report import TRACEBACK
from crepe_dist.distributed.launch import horovodrun
from crepe_dist.errors import UserError
from crepe_dist.files import read_json, write_json
from crepe_dist.model import parameters
from crepe_dist.model.compressed import Packed
from crepe_dist.settings import arguments

SMOKE = Path(__file__).parent.parent / "configs" / "smoke.yaml"
QUIET = ("--model.network=paper", "--logging.every=1", "--logging.tensorboard=false", "--logging.report=false")
EXACT = {"NVIDIA_TF32_OVERRIDE": "0"}  # on Ampere and later, cuDNN rounds the factors of float32 products to TF32
TOLERANCE = {"float32": 1e-4, "float16": 2e-2}  # of the losses, in nats
Row = dict[str, Any]
Rows = Iterator[Row]


@dataclass(frozen=True)
class Bench:
    """Sizes of the benchmark; the defaults are those for GPUs, with the notebook's network.

    Attributes:
        folder: scratch folder.
        device: gpu or cpu.
        worlds: numbers of processes, ascending, from 1.
        data: data set of the runs.
        python: interpreter with PyTorch; ``None``: PyTorch is left out.
        batches: documents per process and step to measure.
        seconds, rounds: duration and number of the measurements.
    """

    folder: Path
    device: str
    worlds: list[int]
    data: str
    python: str | None
    batches: tuple[int, ...] = (128, 512)
    seconds: float = 4.0
    rounds: int = 3
    feature_len: int = 1014
    filters: int = 256
    units: int = 1024
    classes: int = 7
    batch_size: int = 128

    @property
    def precisions(self) -> tuple[str, ...]:
        """Precisions to measure, the fastest last."""
        return ("float32", "float16") if self.device == "gpu" else ("float32",)

    def train(self, name: str, processes: int, *flags: str, device: str = "") -> list[str]:
        """Make the command of a short run in the folder ``name``; ``flags`` take precedence over its settings."""
        where = ("--data", self.data, "--device", device or self.device, "--run-dir", str(self.folder / name))
        launch = [str(horovodrun()), "-np", str(processes)] if processes > 1 else []
        sizes = (f"--model.filters={self.filters}", f"--model.units={self.units}")
        return [*launch, *TRAIN, "--config", str(SMOKE), *where, *sizes, *QUIET, *flags]


SMALL: dict[str, Any] = {
    "batches": (8, 16), "seconds": 0.1, "rounds": 1, "feature_len": 123, "filters": 16, "units": 32,
}  # fmt: skip


def doctor(bench: Bench) -> Rows:
    found = json.loads(call([sys.executable, "-m", "crepe_dist.doctor", "--json"], codes=(0, 1)))
    links = call(["nvidia-smi", "topo", "-m"]) if shutil.which("nvidia-smi") else ""
    yield {"verdict": found["verdict"], "links": links.splitlines(), **found}


def correctness(bench: Bench) -> Rows:
    # On a CPU, MXNet's operators stand for the device; the reference is computed by our own kernels.
    operators = ("--model.kernels=mxnet",) if bench.device == "cpu" else ()
    call(bench.train("reference", 1, "--model.precision=float32", device="cpu"))
    for precision in bench.precisions:
        name = f"alone-{precision}"
        call(bench.train(name, 1, f"--model.precision={precision}", *operators), environment=os.environ | EXACT)
        found = compared(bench.folder / name, bench.folder / "reference", TOLERANCE[precision])
        yield {"precision": precision, **found}


def parity(bench: Bench) -> Rows:
    if bench.worlds[-1] == 1:
        raise UserError("it needs several processes", "there is one GPU, or Horovod is not installed")
    for processes in bench.worlds:
        run = bench.train(f"parity-{processes}", processes, "--model.precision=float32")
        call(run, environment=os.environ | EXACT)
        if processes > 1:
            rows = compared(bench.folder / f"parity-{processes}", bench.folder / "parity-1", TOLERANCE["float32"])
            yield {"processes": processes, **rows}


def throughput(bench: Bench) -> Rows:
    alone: dict[tuple[str, int], Row] = {}
    for processes in bench.worlds:
        for precision in bench.precisions:
            for batch in bench.batches:
                case = (bench, processes, precision, batch)
                row = {"processes": processes, "precision": precision, "batch": batch}
                figures = tried(partial(ours, *case))
                first = alone.setdefault((precision, batch), figures)
                if "error" not in figures | first:
                    figures["exposed_ms"] = figures["step_ms"] - first["step_ms"]
                    figures["efficiency"] = figures["rate"] / processes / first["rate"]
                yield {**row, "by": "crepe_dist", **figures}
                for compiled in (False, True) if bench.python and processes in (1, bench.worlds[-1]) else ():
                    by = f"PyTorch, {'compiled' if compiled else 'eager'}"
                    yield {**row, "by": by, **tried(partial(theirs, *case, compiled))}


def ours(bench: Bench, processes: int, precision: str, batch: int) -> Row:
    """Measure our training step and, with several processes, the all-reduce alone."""
    shape = {name: getattr(bench, name) for name in ("feature_len", "classes", "filters", "units")}
    start = scaling.start_world if processes > 1 else scaling.start_independent
    with start(processes, bench.device) as workers:
        workers.ask("build", on=bench.device, precision=precision, alphabet_size=len(ALPHABET), **shape)
        rates = in_turns({"": scaling.training(workers, batch, bench.seconds)}, bench.rounds)[""]
        alone = 1000 * scaling.allreduce_seconds(workers, batch, bench.rounds) if processes > 1 else 0.0
    rate = statistics.median(rates)
    return {"rate": rate, "rates": rates, "step_ms": 1000 * processes * batch / rate, "allreduce_ms": alone}


def theirs(bench: Bench, processes: int, precision: str, batch: int, compiled: bool) -> Row:
    """Measure PyTorch's training step, with DistributedDataParallel if there are several processes."""
    cuda.load()
    sizes = {**peers.described(bench, threads=1), "batch_size": batch}
    request = {"sizes": sizes, "device": bench.device, "precision": precision, "compiled": compiled}
    run = [str(bench.python), "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    # PYTHONSAFEPATH: no module of the worker's folder may hide one of PyTorch's.
    settings = {"PYTHONSAFEPATH": "1", "TORCHINDUCTOR_COMPILE_THREADS": "1", "OMP_NUM_THREADS": "1"}
    worker = [str(peers.WORKER), json.dumps({**request, "seconds": bench.seconds})]
    out = call([*run, *worker], environment=peers.environment() | settings)
    return dict(json.loads(out.splitlines()[-1]))


def resume(bench: Bench) -> Rows:
    """Kill the last rank after the first epoch, and run the same command again; dropout is on."""
    processes, run = bench.worlds[-1], bench.folder / "killed"
    flags = ("--model.dropout=0.5", "--epochs=30", "--checkpoint.every=100")
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
    apart = compared(run, bench.folder / "unbroken", 0.0)
    yield {"processes": processes, "seconds until all ended": seconds, **apart}


SECTIONS: dict[str, Callable[[Bench], Rows]] = {
    "doctor": doctor, "correctness": correctness, "parity": parity, "throughput": throughput, "resume": resume,
}  # fmt: skip


def compared(run: Path, reference: Path, tolerance: float) -> Row:
    """Compare two finished runs that recorded every step.

    Args:
        tolerance: largest difference of two losses that is ``ok``, in nats.

    Returns:
        ``steps``, how many both runs recorded; the largest difference of the losses of the first, the second and any
        of them; of ``parameters`` at the end; and ``ok``.
    """
    losses, references = _losses(run), _losses(reference)
    common = sorted(losses.keys() & references.keys())
    apart = [abs(losses[step] - references[step]) for step in common]
    arrays, expected = _parameters(run), _parameters(reference)
    worst = max(float(np.abs(arrays[name] - expected[name]).max()) for name in expected)
    row = {"steps": len(common), "first": apart[0], "second": apart[1], "any": max(apart), "parameters": worst}
    return {**row, "tolerance": tolerance, "ok": max(apart) <= tolerance}


def _losses(run: Path) -> dict[int, float]:
    records = map(json.loads, (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    return {record["step"]: record["loss"] for record in records if record["event"] == "step"}


def _parameters(run: Path) -> Any:
    arrays = parameters.load(run / read_json(run / "result.json")["checkpoint"])
    return {name: array.unpack() if isinstance(array, Packed) else array for name, array in arrays.items()}


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
    flags.add_argument("--device", choices=("gpu", "cpu"), default="gpu", help="default: gpu")
    flags.add_argument(
        "--small", action="store_true", help="small sizes, to try the benchmark; implied by --device cpu"
    )
    flags.add_argument("--processes", type=int, help="most processes to start; default: the number of GPUs, 2 on a CPU")
    flags.add_argument("--data", default="sample", help="data set of the short runs; default: the sample")
    flags.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS), help="sections; default: all")
    flags.add_argument("--minutes", type=float, default=30.0, help="longest duration of a section; default: 30")
    others = flags.add_mutually_exclusive_group()
    others.add_argument("--peers", metavar="PYTHON", help="Python interpreter with PyTorch; default: install one")
    others.add_argument("--no-peers", action="store_true", help="skip PyTorch")
    return flags


def main() -> None:
    given = parser().parse_args()
    arguments.check_output(given.json, "--json")
    os.environ[TRACEBACK] = "1"  # of the commands, for the errors that the JSON records
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the started commands are ended
    places = 2 if given.device == "cpu" else inventory.probe()["mxnet"].get("gpus", 0)
    most = max(1, given.processes or places)
    python, trouble = _python(given)
    report: Row = {"machine": machine.describe(), "versions": machine.versions(), "device": given.device}
    report |= {"processes": most, "without PyTorch": trouble, "sections": {}}
    with tempfile.TemporaryDirectory() as folder:
        worlds = sorted({1, most, *(size for size in (2, 4, 8) if size < most)}) if horovodrun() else [1]
        sizes = SMALL if given.small or given.device == "cpu" else {}
        bench = Bench(Path(folder), given.device, worlds, given.data, python, **sizes)
        for name in given.only:
            print(f"{name} …", file=sys.stderr, flush=True)
            report["sections"][name] = measured(partial(SECTIONS[name], bench), 60 * given.minutes)
            write_json(given.json, report)  # now, in case a later section is killed
    for name, section in report["sections"].items():
        print(table(name, section))
    print(f"\nwritten to {given.json}")


def _python(given: argparse.Namespace) -> tuple[str | None, str]:
    """Return an interpreter with PyTorch, installed if necessary; or the reason why there is none."""
    if given.no_peers or given.peers:
        return given.peers, "--no-peers" if given.no_peers else ""
    try:
        return peers.interpreter(partial(print, file=sys.stderr)), ""
    except UserError as error:
        return None, f"{error.what}: {error.why}"


if __name__ == "__main__":
    command.run(main)
