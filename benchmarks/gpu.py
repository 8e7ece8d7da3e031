#!/usr/bin/env python3
"""Test this package on the GPUs of this host: correctness first, then speed. Run it once on every new kind of GPU.

    uv sync --inexact --group dev --extra gpus
    uv run --no-sync benchmarks/gpu.py                   # stops at the first failure, and explains it
    uv run --no-sync benchmarks/gpu.py --only squares gradients
    uv run --no-sync benchmarks/gpu.py --emulator        # without a GPU, at small sizes

Each step depends only on earlier steps, so the first failure shows where the problem is. Most steps are tests of the
suite. ``CREPE_DIST_TEST_GPU=real`` makes these tests run on the GPUs. The script writes a JSON file and a summary in
Markdown next to it. The files contain no names of users or hosts, except in messages of failing programs. Read them
before you send them.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import random
import shlex
import shutil
import signal
import statistics
import sys
import tempfile
import time
import xml.etree.ElementTree as ET
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from commands import TRAIN, call

from crepe_dist import command_runner, hardware, network_registry
from crepe_dist.cuda import compiler, driver, gpu, nccl
from crepe_dist.data.batch import pack_batch
from crepe_dist.data.dataset import open_dataset
from crepe_dist.distributed.device import Device
from crepe_dist.distributed.process_group import ProcessGroup
from crepe_dist.engines.engine import create_engine
from crepe_dist.errors import UserError
from crepe_dist.files.atomic_write import write_text
from crepe_dist.files.json_file import read_json, write_json
from crepe_dist.model.backend import choose_backend
from crepe_dist.settings.flags import Parser, check_output
from crepe_dist.settings.options import ModelOptions, OptimizerOptions

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
try:
    from tests.helpers import cuda_emulator
    from tests.helpers.engines import TrainingStep, initial
except ImportError as error:
    sys.exit(f"error: {error}\n  do:  uv sync --inexact --group dev --extra gpus")

CREPE = (sys.executable, "-m", "crepe_dist")
FLOAT32, AUTO = "float32", "auto"
LONG, SHORT = "long", "short"  # texts of 1,014 characters, and the sample's of 192 at most
Row = dict[str, Any]
Rows = Iterator[Row]


class Skipped(Exception):
    """What this host cannot try, and why."""


class Wrong(Exception):
    """Failure of a test, or a complaint of the program that watched over it."""


@dataclass(frozen=True)
class Bench:
    """Sizes of what is measured; the defaults are those for GPUs."""

    folder: Path  # of data sets and runs
    emulated: bool
    rows: int = 8192  # documents of an epoch, about
    batch: int = 128  # documents of a process and step
    steps: int = 20  # whose kernels are timed
    sizes: tuple[tuple[str, int], ...] = ()  # settings of the default network

    def train(self, run: Path, data: str, processes: int, device: str, *flags: str) -> None:
        """Train in the folder ``run``."""
        launch = [*CREPE, "supervise", "-np", str(processes), "--max-restarts=0"] if processes > 1 else TRAIN
        where = ("--data", str(self.folder / data), "--device", device, "--run-dir", str(run))
        settings = [*(f"--{name}={size}" for name, size in self.sizes), "--logging.tensorboard=false", *flags]
        call([*launch, *where, *settings], seconds=600)

    def prepare(self) -> None:
        """Make both data sets, once: long texts are those of several documents of a class."""
        if (self.folder / LONG).exists():
            return
        per_class = str(max(10, self.rows // 3))  # a fifth is the test split
        call([*CREPE, "prepare", "sample", "--max-per-class", per_class, "--out", str(self.folder / SHORT)])
        data, generator, of_class = open_dataset(self.folder / SHORT), random.Random(0), defaultdict(list)
        labels = data.splits["train"].labels.tolist()
        for row, label in enumerate(labels):
            of_class[label].append(data.text("train", row))
        joined = [" ".join(generator.choices(of_class[label], k=20)) for label in labels]
        lines = (json.dumps({"label": data.classes[label], "text": text}) for label, text in zip(labels, joined))
        write_text(self.folder / "long.jsonl", "\n".join(lines))
        source = str(self.folder / "long.jsonl")
        call([*CREPE, "prepare", source, "--feature-len", "1014", "--out", str(self.folder / LONG)])


SMALL: Row = {"rows": 30, "batch": 2, "steps": 1, "sizes": (("buckets", 4096), ("embedding_rows", 1024), ("width", 16))}


# ---- what is tried ---------------------------------------------------------------------------------------------------


def describe(bench: Bench) -> Rows:
    lines = call([*CREPE, "doctor", "--quick"], exit_codes=(0, 1)).splitlines()
    if error := driver.version_error() or compiler.missing():
        raise error
    if not lines[-1].startswith("ready"):
        raise RuntimeError(" | ".join(lines))
    yield {"doctor": lines[-1], "lines": lines, "NCCL": nccl.version()}
    gpus = range(driver.gpu_count())
    for number in gpus:
        capability, place = driver.compute_capability(number), driver.gpu_location(number)
        compiled = f"{compiler.architecture_for(capability)}, {compiler.compilers(capability)}"
        sliced = sum(driver.gpu_location(other) == place for other in gpus) > 1
        yield {"GPU": number, "name": driver.gpu_name(number), "compiled for": compiled, "slice (MIG)": sliced}
    facts = "driver_version,memory.total,mig.mode.current,compute_mode,ecc.mode.current,clocks.max.sm,pcie.link.gen.max"
    for question in (["topo", "-m"], [f"--query-gpu={facts}", "--format=csv"]):
        if shutil.which("nvidia-smi"):
            yield {"lines": call(["nvidia-smi", *question], range(256)).splitlines()}


def run_tests(selection: str, under: Sequence[str] = ()) -> Row:
    """Run tests, also slow ones, each file once; return how many passed, and how many were skipped and why.

    Args:
        selection: files of tests, and an expression of names after a colon.
        under: program, with its flags, that watches over them.

    Raises:
        Wrong: a test failed, or the program complained.
        RuntimeError: the tests could not run.
        Skipped: all were skipped.
    """
    files, _, names = selection.partition(":")
    pytest = [sys.executable, "-m", "pytest", "-qx", "-n0", "--disable-warnings", f"--rootdir={ROOT}"]
    with tempfile.TemporaryDirectory() as folder:
        report, paths = Path(folder) / "report.xml", [str(ROOT / "tests" / each) for each in files.split()]
        chosen = ["--timeout=1200", "-m", "", "-k", names.strip(), f"--junit-xml={report}"]
        out = call([*under, *pytest, *chosen, *paths], (0, 1))
        cases = list(ET.parse(report).iter("testcase")) if report.exists() else []
    reasons: Counter[str] = Counter()
    for case in cases:
        for outcome in case:
            told = outcome.get("message", "")
            if outcome.tag in ("failure", "error"):
                raise Wrong(f"{case.get('classname')}.{case.get('name')}: {told}\n{outcome.text}")
            reasons[told] += outcome.tag == "skipped"
    complaints = [line for line in out.splitlines() if line.startswith("=========")] if under else []
    if complaints and "SUMMARY: 0 " not in complaints[-1]:
        raise Wrong("\n".join(complaints[:60]))
    if not cases:
        raise RuntimeError(out[-3000:])
    if len(cases) == sum(reasons.values()):
        raise Skipped("; ".join(reasons))
    return {"passed": len(cases) - sum(reasons.values()), "skipped": dict(reasons)}


def sanitize(bench: Bench) -> Rows:
    found = shutil.which("compute-sanitizer", path=f"{os.environ.get('PATH', '')}:/usr/local/cuda/bin")
    if bench.emulated or found is None:
        lacks = "compute-sanitizer is not installed (NVIDIA's package cuda-sanitizer-12-8)"
        raise Skipped("the emulator looks for the same mistakes itself" if bench.emulated else lacks)
    for tool in ("memcheck", "racecheck", "synccheck"):
        tests = f"{DRIVER} {ENGINE}: square or gradients_are or rounds_alike"
        yield {"tool": tool, **run_tests(tests, [found, f"--tool={tool}", "--print-limit=20"])}


def time_kernels(bench: Bench) -> Rows:
    bench.prepare()
    for precision in (AUTO, FLOAT32):
        with ProcessPoolExecutor(1, get_context("spawn")) as pool:  # which leaves its GPU
            yield from pool.submit(kernel_times, bench, precision).result(None if bench.emulated else 600)


def kernel_times(bench: Bench, precision: Any) -> list[Row]:
    """Time the kernels of steps of the default network on long texts; on the emulator, count their traffic instead."""
    os.environ["EMULATOR_COUNTS"] = "1"
    data, device = open_dataset(bench.folder / LONG), Device("gpu", 0)
    split, size = data.splits["train"], 64 if bench.emulated else bench.batch
    rows = np.resize(np.arange(len(split)), size)
    options = ModelOptions(precision=precision)
    shape: Any = network_registry.config_class("crepe").for_data(options, data.encoder, len(data.classes), len(split))
    backend = choose_backend(options, device, shape)
    engine: Any = create_engine(shape, initial(shape).parameters, backend, device=device)
    step = TrainingStep(engine, engine.create_optimizer(ProcessGroup(), OptimizerOptions(), size))
    batch = pack_batch(split.char_ids(rows), split.labels[rows], size, size)

    def steps(first: int, last: int) -> None:
        for number in range(first, last):
            step(batch, number, 0.001)
        engine.wait()

    steps(1, 4)  # Until the fixed-point scales have settled.
    found = (traffic if bench.emulated else event_times)(partial(steps, 4, 4 + bench.steps))
    return [{"precision": backend.precision, "kernel": name, **each} for name, each in found.items()]


def traffic(work: Callable[[], None]) -> dict[str, Row]:
    """Count what the interpreter's kernels do: their lanes' bytes, the sectors of 32 bytes that a warp touches, …"""
    counts = ctypes.CDLL(driver.LIBRARY).emulatorCounts
    counts.restype = ctypes.c_char_p
    before = json.loads(counts())
    work()
    return {
        kernel: {name: count - before[kernel][name] for name, count in after.items()}
        for kernel, after in json.loads(counts()).items()
    }


def event_times(work: Callable[[], None]) -> dict[str, Row]:
    """Time the launches by events of CUDA: launches and microseconds of all steps."""
    cuda, launch = ctypes.CDLL(driver.LIBRARY), gpu.CudaModule.launch
    marks: list[tuple[str, list[ctypes.c_void_p]]] = []

    def timed(module: Any, name: str, *given: Any, **named: Any) -> None:
        events = [ctypes.c_void_p(), ctypes.c_void_p()]
        for event in events:
            cuda.cuEventCreate(ctypes.byref(event), 0)
        cuda.cuEventRecord(events[0], module._gpu.stream)
        launch(module, name, *given, **named)
        cuda.cuEventRecord(events[1], module._gpu.stream)
        marks.append((name, events))

    gpu.CudaModule.launch = timed  # type: ignore[assignment, method-assign]
    work()
    spent, elapsed = defaultdict(list), ctypes.c_float()
    for name, events in marks:
        cuda.cuEventElapsedTime(ctypes.byref(elapsed), *events)
        for each in (name, "all kernels"):
            spent[each].append(1000 * elapsed.value)
    return {name: {"launches": len(each), "us": sum(each)} for name, each in spent.items()}


def throughput(bench: Bench) -> Rows:
    """Measure short runs of the default network."""
    bench.prepare()
    cases = [(AUTO, size) for size in (1, 2, 4, 8) if size <= driver.gpu_count()]
    for precision, processes in [*cases, (FLOAT32, 1)]:
        for data in (LONG, SHORT):
            yield {"texts": data, "precision": precision, **measure_run(bench, data, precision, processes)}


def measure_run(bench: Bench, data: str, precision: str, processes: int) -> Row:
    """Measure the steps of a run of at least an epoch, and of more if it has too few of them."""
    run, began = bench.folder / "runs" / f"{data}-{precision}-{processes}", time.monotonic()
    batch = (f"--batch-size={bench.batch * processes}", f"--epochs={max(1, processes // 2)}")
    bench.train(run, data, processes, "gpu", f"--precision={precision}", *batch)
    records = map(json.loads, (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    steps = [record["milliseconds"] for record in records if record["event"] == "step"]
    step = statistics.median(steps[len(steps) // 2 :])
    times = {"documents/s": 1000 * processes * bench.batch / step, "step ms": step, "first ms": steps[0]}
    by = read_json(run / "result.json")["provenance"]["computes"]
    return {"by": f"crepe_dist, {by}", "processes": processes, **times, "run s": time.monotonic() - began}


# Each step: tests (files, and names after a colon) or a function; and what a failure means, and what to do.
DRIVER, ENGINE, RUNS = "cuda/test_cuda_driver.py", "engines/test_cuda_engine.py", "cuda/test_cuda_runs.py"
STEPS: dict[str, tuple[str | Callable[[Bench], Rows], str]] = {
    "machine": (describe, "We cannot use the GPU: do what the message says. docs/install.md has the versions."),
    "driver": (f"{DRIVER}: not square and not full and not two_processes and not forked", """
    Copies, shuffles, atomics or roundings are not what CUDA documents: our call of the driver, or its fault. What comes
    after would say nothing."""),
    "squares": (f"{DRIVER}: square", """
    A tile of the tensor cores (wmma) holds other numbers than we think. Look at Square in cuda/kernels/product.cuh for
    the precision and the layout in the message."""),
    "gradients": (f"{ENGINE}: gradients_are or objectives or rounds_alike or finite", """
    A kernel computes something else than on the CPU or, in rounds_alike, reads or rounds 16 bits elsewhere. The wrong
    parameter that is nearest to the output tells the kernel."""),
    "sanitizer": (sanitize, """
    A kernel leaves its memory (memcheck), reads before another thread has written (racecheck) or waits for one that
    does not come (synccheck). The message names it."""),
    "equal bits": (f"{ENGINE}: nor_another_time or no_trace or continues_exactly", """
    The same step gave other bits: a race, floats that are added in no fixed order, or memory that was not cleared."""),
    "epoch": (f"{ENGINE} {RUNS}: follows_the or epoch_ends or needs_no_mxnet", """
    The gradients are right, but parameters end far from the CPU's: the optimizer, the data or the state of a run."""),
    "limits": (f"{DRIVER} {RUNS}: full_gpu or two_processes or forked or too_small or not_used", """
    A full GPU, a cold cache that two processes fill, or a fork ends otherwise than we promise."""),
    "NCCL": ("cuda/test_nccl.py", """
    NCCL's sums of whole numbers are wrong, or it hangs. Try NCCL_P2P_DISABLE=1, and read what NCCL_DEBUG=INFO shows;
    without it (uv pip uninstall nvidia-nccl-cu12) we sum in main memory."""),
    "1, 2, 4 GPUs": (f"{RUNS}: any_number or slices", """
    Several GPUs train another model than one: a sum, or something that depends on the rank. Use one meanwhile."""),
    "broken runs": (f"{RUNS}: broken", """
    After SIGKILL in a sum, or SIGSTOP, the others hang or say something else, or the resumed run has other bits."""),
    "MXNet": ("mxnet_gpu/test_mxnet_gpu.py: computes", "MXNet's GPU build computes something else than on the CPU."),
    "kernels": (time_kernels, "No kernel could be timed. What came before is right."),
    "predictions": (f"{RUNS}: answers", "The GPU predicts other probabilities than the CPU."),
    "throughput": (throughput, "A run of the usual size failed, where small ones do not: memory, or a bound."),
}  # fmt: skip


# ---- the report ------------------------------------------------------------------------------------------------------


def take(step: Row, bench: Bench, save: Callable[[], None]) -> None:
    """Run a step. Add its outcome and its rows of results to ``step``. Each row is saved immediately."""
    work, means = STEPS[step["step"]]
    begun = time.monotonic()
    try:
        for row in iter([run_tests(work)]) if isinstance(work, str) else work(bench):
            step["rows"].append(row)
            print(f"  {', '.join(f'{key} {shown}' for key, shown in cells(row))}", file=sys.stderr, flush=True)
            save()
        step["outcome"] = "passed"
    except Skipped as reason:
        step |= {"outcome": "skipped", "why": str(reason)}
    except Exception as error:
        told = means if isinstance(error, Wrong) or callable(work) else "It could not be run; no test of it failed."
        step |= {"outcome": "FAILED", "means": " ".join(told.split()), "error": f"{type(error).__name__}: {error}"}
    step["seconds"] = time.monotonic() - begun
    save()


def cells(row: Row) -> Iterator[tuple[str, str]]:
    """Yield names and values of a row for display; the JSON has the rest."""
    for name, value in row.items():
        if isinstance(value, (str, int, float)):
            yield name, f"{value:,.4g}" if isinstance(value, float) else str(value)[:200]
        elif value and isinstance(value, dict):
            yield name, "; ".join(f"{count} × {reason}" for reason, count in value.items())


def summary(report: Row) -> str:
    """Format the report in Markdown."""
    steps = report["steps"]
    stopped = [f"Stopped at {step['step']}. {step['means']}" for step in steps if "means" in step]
    verdict = stopped or ["Nothing failed."]
    lines = [f"# crepe_dist {report['machine']['crepe_dist']} on {report['on']}", "", *verdict, ""]
    lines += table([{name: step[name] for name in ("step", "outcome", "seconds")} for step in steps])
    for step in (each for each in steps if each["outcome"] != "not run"):
        lines += ["", f"## {step['step']}: {step['outcome']}", "", *table(step["rows"])]
        lines += [step[name][:3000] for name in ("why", "error") if name in step]
    return "\n".join([*lines, ""])


def table(rows: list[Row]) -> list[str]:
    shown = [dict(cells(row)) for row in rows]
    names = list(dict.fromkeys(name for row in shown for name in row))
    lines = [names, ["---"] * len(names), *([row.get(name, "") for name in names] for row in shown)]
    return [f"| {' | '.join(line)} |" for line in lines if names]


def main() -> None:
    flags = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--json", type=Path, default=Path("gpu.json"), metavar="FILE", help="default: gpu.json")
    flags.add_argument("--emulator", action="store_true", help="on two stand-ins for GPUs, at small sizes")
    steps_help = f"steps; default: all, which are {', '.join(map(shlex.quote, STEPS))}"
    flags.add_argument("--only", nargs="+", metavar="STEP", choices=STEPS, default=list(STEPS), help=steps_help)
    given = flags.parse_args()
    check_output(given.json, "--json")
    summarised = given.json.with_suffix(".md")
    if summarised == given.json:
        flags.error(f"--json: {given.json} is the name of the summary: choose one that ends in .json")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the started commands are ended
    with ExitStack() as stack:
        folder, sizes = Path(stack.enter_context(tempfile.TemporaryDirectory())), {}
        if given.emulator:
            sizes = SMALL
            stack.enter_context(cuda_emulator.used())
            stack.enter_context(cuda_emulator.for_processes(DRIVER_GPUS=2))
        else:
            os.environ[cuda_emulator.SWITCH] = "real"
        names = Counter(driver.gpu_name(number) for number in range(driver.gpu_count()))
        if not names:
            remedy = "see `crepe doctor`; to try this command: --emulator"
            raise driver.load_error() or driver.init_error() or UserError("there is no GPU", remedy=remedy)
        on = ", ".join(f"{count} × {name}" for name, count in names.items())
        on += " (an emulator: nothing here tells the speed of a GPU)" * given.emulator
        bench = Bench(folder, given.emulator, **sizes)
        steps: list[Row] = [{"step": name, "outcome": "not run", "seconds": 0.0, "rows": []} for name in given.select]
        report: Row = {"on": on, "machine": hardware.describe(), "steps": steps}

        def save() -> None:  # now, in case what comes is killed
            write_json(given.json, report)
            write_text(summarised, summary(report))

        for step in steps:
            print(f"{step['step']} …", file=sys.stderr, flush=True)
            take(step, bench, save)
            if step["outcome"] == "FAILED":
                break
    print(f"{summary(report)}\nwritten to {given.json} and {summarised}")
    sys.exit(steps[-1]["outcome"] in ("FAILED", "not run"))


if __name__ == "__main__":
    command_runner.run(main)
