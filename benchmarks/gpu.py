#!/usr/bin/env python3
"""Check and measure training on the GPUs of this host: what their owner runs once.

    uv run --no-sync benchmarks/gpu.py --json gpu.json
    uv run --no-sync benchmarks/gpu.py --json gpu.json --only doctor correctness parity
    uv run --no-sync benchmarks/gpu.py --json cpu.json --device cpu

doctor       `crepe doctor`, and the links between the GPUs
correctness  losses and parameters of the first steps, against one process on the CPU
parity       the same of N processes, against one process on the same device
throughput   documents/s on one GPU and on all; beside it PyTorch, eager and compiled, with DistributedDataParallel
scaling      documents/s and the time of an all-reduce with 1, 2, 4, 8 processes
overlap      the share of the all-reduce that the backward pass hides, from Horovod's timeline
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
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from crepe_dist import command, machine
from crepe_dist.benchmarking import peers_environment, scaling, timeline
from crepe_dist.benchmarking.commands import call, started
from crepe_dist.benchmarking.sections import Row, measured, table, tried
from crepe_dist.benchmarking.short_runs import TRAIN, compared, ranks
from crepe_dist.data.alphabet import ALPHABET
from crepe_dist.diagnosis import inventory
from crepe_dist.distributed import cuda
from crepe_dist.distributed.crash_report import TRACEBACK
from crepe_dist.distributed.launch import horovodrun
from crepe_dist.errors import UserError
from crepe_dist.files import write_json
from crepe_dist.settings import arguments
from crepe_dist.timing import in_turns

SMOKE = Path(__file__).parent.parent / "configs" / "smoke.yaml"
QUIET = ("--model.network=paper", "--logging.every=1", "--logging.tensorboard=false", "--logging.report=false")
EXACT = {"NVIDIA_TF32_OVERRIDE": "0"}  # on Ampere and later, cuDNN rounds the factors of float32 products to TF32
TOLERANCE = {"float32": 1e-4, "float16": 2e-2}  # of the losses, in nats
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


def several(bench: Bench) -> int:
    """Return the largest number of processes.

    Raises:
        UserError: there is only one.
    """
    if bench.worlds[-1] == 1:
        raise UserError("it needs several processes", "there is one GPU, or Horovod is not installed")
    return bench.worlds[-1]


def parity(bench: Bench) -> Rows:
    several(bench)
    for processes in bench.worlds:
        run = bench.train(f"parity-{processes}", processes, "--model.precision=float32")
        call(run, environment=os.environ | EXACT)
        if processes > 1:
            found = compared(bench.folder / f"parity-{processes}", bench.folder / "parity-1", TOLERANCE["float32"])
            yield {"processes": processes, **found}


def ours(bench: Bench, processes: int, precision: str, batch: int) -> Row:
    """Measure our training step and, with several processes, the all-reduce alone."""
    shape = {name: getattr(bench, name) for name in ("feature_len", "classes", "filters", "units")}
    start = scaling.start_world if processes > 1 else scaling.start_independent
    with start(processes, bench.device) as workers:
        workers.ask("build", on=bench.device, precision=precision, alphabet_size=len(ALPHABET), **shape)
        rates = in_turns({"": scaling.training(workers, batch, bench.seconds)}, bench.rounds)[""]
        alone = 1000 * scaling.allreduce_seconds(workers, bench.rounds) if processes > 1 else 0.0
    rate = statistics.median(rates)
    return {"rate": rate, "rates": rates, "step_ms": 1000 * processes * batch / rate, "allreduce_ms": alone}


def theirs(bench: Bench, processes: int, precision: str, batch: int, compiled: bool) -> Row:
    """Measure PyTorch's training step, with DistributedDataParallel if there are several processes."""
    cuda.load()
    from crepe_dist.benchmarking import peers  # MXNet: the other sections must not depend on its import

    sizes = {**peers.described(bench, threads=1), "batch_size": batch}
    request = {"sizes": sizes, "device": bench.device, "precision": precision, "compiled": compiled}
    run = [str(bench.python), "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    # PYTHONSAFEPATH: no module of the worker's folder may hide one of PyTorch's.
    own = {"PYTHONSAFEPATH": "1", "TORCHINDUCTOR_COMPILE_THREADS": "1", "OMP_NUM_THREADS": "1"}
    environment = peers_environment.clean(dict(os.environ)) | own
    out = call([*run, str(peers.WORKER), json.dumps({**request, "seconds": bench.seconds})], environment=environment)
    return dict(json.loads(out.splitlines()[-1]))


def throughput(bench: Bench) -> Rows:
    for processes in sorted({1, bench.worlds[-1]}):
        for precision in bench.precisions:
            for batch in bench.batches:
                case = (bench, processes, precision, batch)
                row = {"processes": processes, "precision": precision, "batch": batch}
                yield {**row, "by": "crepe_dist", **tried(partial(ours, *case))}
                for compiled in (False, True) if bench.python else ():
                    by = f"PyTorch, {'compiled' if compiled else 'eager'}"
                    yield {**row, "by": by, **tried(partial(theirs, *case, compiled))}


def scale(bench: Bench) -> Rows:
    first: Row = {}
    for processes in bench.worlds:
        row = ours(bench, processes, bench.precisions[-1], bench.batches[0])
        first = first or row
        exposed = {"exposed_ms": row["step_ms"] - first["step_ms"]}  # what the all-reduce adds to a step
        yield {"processes": processes, **row, **exposed, "efficiency": row["rate"] / processes / first["rate"]}


def overlap(bench: Bench) -> Rows:
    processes = several(bench)
    for precision in bench.precisions:
        path = bench.folder / f"timeline-{precision}.json"
        # Without our kernels: on the CPUs of one host, they would sum the gradients in shared memory.
        settings = {"HOROVOD_TIMELINE": str(path), "CREPE_DIST_KERNELS": "none"}
        run = bench.train(f"overlap-{precision}", processes, f"--model.precision={precision}")
        call(run, environment=os.environ | settings)
        yield {"precision": precision, "processes": processes, **timeline.overlap(path)}


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
    "doctor": doctor, "correctness": correctness, "parity": parity, "throughput": throughput, "scaling": scale,
    "overlap": overlap, "resume": resume,
}  # fmt: skip


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
        return peers_environment.interpreter(partial(print, file=sys.stderr)), ""
    except UserError as error:
        return None, f"{error.what}: {error.why}"


if __name__ == "__main__":
    command.run(main)
