#!/usr/bin/env python3
"""Test this package on the GPUs of this host: first correctness, then speed. Run it once on each new GPU model.

    uv run --group gpu-tests benchmarks/gpu.py                # stops at the first failed step and explains it
    uv run --group gpu-tests benchmarks/gpu.py --only squares gradients
    uv run --group gpu-tests --with torch benchmarks/gpu.py   # also measures PyTorch
    uv run --group gpu-tests benchmarks/gpu.py --emulator     # without a GPU, with small sizes

Each step relies only on earlier steps, so the first failure shows where the problem is. Most steps run tests of the
test suite. The script sets ``CREPE_DIST_TEST_GPU=real``, which makes these tests run on the GPUs of this host. With
--emulator, they run on emulated GPUs. The script writes a JSON file, and a Markdown summary next to it. The files
contain no names of users or hosts, except in error messages of failed programs. Read the files before you send them.
"""

import argparse
import ctypes
import json
import math
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
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from commands import TRAIN, call, prepare_sample

from crepe_dist import command_runner, hardware, network_registry
from crepe_dist.cuda import compiler, driver, gpu, nccl
from crepe_dist.data.batch import pack_batch
from crepe_dist.data.char_encoder import CharEncoder
from crepe_dist.data.dataset import open_dataset
from crepe_dist.distributed.device import Device
from crepe_dist.distributed.process_group import ProcessGroup
from crepe_dist.engines.engine import create_engine
from crepe_dist.errors import UserError
from crepe_dist.files.atomic_write import write_text
from crepe_dist.files.json_file import read_json, write_json
from crepe_dist.model.backend import choose_backend
from crepe_dist.native.constants import PAPER_POOL
from crepe_dist.networks.paper import config as paper
from crepe_dist.settings.config import flag
from crepe_dist.settings.flags import Parser, check_output
from crepe_dist.settings.options import MIN_FEATURE_LEN, REFERENCE_BATCH_SIZE, ModelOptions, OptimizerOptions

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from tests.helpers import cuda_emulator  # noqa: E402  # These modules do not import pytest.
from tests.helpers.engines import TrainingStep, initial  # noqa: E402

CREPE = (sys.executable, "-m", "crepe_dist")
FLOAT32, AUTO = "float32", "auto"
EMULATED_DOCUMENTS = {"crepe": 64, "paper": 8}  # documents of a step whose operations the emulator counts
EMULATOR_HINT = "or try this script on an emulated GPU: --emulator"
LONG, SHORT = "long", "short"  # data sets: texts of up to 1,014 characters; texts of the sample, up to 192 characters
Row = dict[str, Any]
Rows = Iterator[Row]


class Skipped(Exception):
    """Reason why this host cannot run a step."""


class TestFailure(Exception):
    """Failure of a test, or an error that compute-sanitizer reported during the tests."""


@dataclass(frozen=True)
class Bench:
    """Sizes of the measurements. The defaults are the sizes for GPUs."""

    folder: Path  # parent folder of the data sets and the runs
    emulated: bool
    rows: int = 8192  # approximate number of documents per epoch
    batch: int = 128  # documents per process and step
    steps: int = 20  # number of steps whose kernel launches are timed
    # Settings of each network that replace the defaults. The keys are the names of the networks.
    settings: tuple[tuple[str, Row], ...] = (("crepe", {}), ("paper", {"size": "small"}))

    def train(self, run: Path, network: str, data: str, processes: int, *flags: str) -> None:
        """Train a model in ``processes`` processes, and write the run to the folder ``run``."""
        launch = [*CREPE, "supervise", "-np", str(processes), "--max-restarts=0"] if processes > 1 else TRAIN
        required = ("--data", str(self.folder / data), "--device=gpu", "--run-dir", str(run), f"--model={network}")
        settings = [f"{flag('model.' + name)}={value}" for name, value in dict(self.settings)[network].items()]
        call([*launch, *required, *settings, *flags], seconds=600)

    def prepare(self) -> None:
        """Prepare both data sets on the first call. A long text consists of 20 random texts of the same class."""
        if (self.folder / LONG).exists():
            return
        prepare_sample(self.folder / SHORT, max(10, self.rows // 3))  # a fifth of the rows becomes the test split
        data, generator, texts_by_class = open_dataset(self.folder / SHORT), random.Random(0), defaultdict(list)
        labels = data.splits["train"].labels.tolist()
        for row, label in enumerate(labels):
            texts_by_class[label].append(data.text("train", row))
        joined = [" ".join(generator.choices(texts_by_class[label], k=20)) for label in labels]
        lines = (json.dumps({"label": data.classes[label], "text": text}) for label, text in zip(labels, joined))
        write_text(self.folder / "long.jsonl", "\n".join(lines))
        source = str(self.folder / "long.jsonl")
        call([*CREPE, "prepare", source, "--feature-len", "1014", "--out", str(self.folder / LONG)])


SMALL: Row = {
    "rows": 30,
    "batch": 2,
    "steps": 1,
    "settings": (("crepe", {"buckets": 4096, "embedding_rows": 1024, "width": 16}), ("paper", {"size": "tiny"})),
}


# ---- steps -----------------------------------------------------------------------------------------------------------


def describe(bench: Bench) -> Rows:
    """Check that the GPUs, their driver and the compiler are usable, and describe the GPUs."""
    lines = call([*CREPE, "doctor"]).splitlines()
    if error := driver.version_error() or compiler.missing():
        raise error
    yield {"lines": lines, "NCCL": nccl.version()}
    gpus = range(driver.gpu_count())
    for number in gpus:
        capability, name = driver.compute_capability(number), driver.gpu_name(number)
        compiled = f"{compiler.architecture_for(capability)}, {compiler.compilers(capability)}"
        # CUDA shows one slice to a process, so its name may be the only sign.
        location = driver.gpu_location(number)
        sliced = "MIG" in name or sum(driver.gpu_location(other) == location for other in gpus) > 1
        options, device = ModelOptions(buckets=1 << 14, embedding_rows=1 << 14), Device("gpu", number)
        shape = network_registry.config_class("crepe").for_data(
            options, CharEncoder(feature_len=MIN_FEATURE_LEN), 4, 1000
        )
        backend = choose_backend(options, device, shape)
        create_engine(shape, initial(shape).parameters, backend, device=device)  # Loads the kernels.
        yield {"GPU": number, "name": name, "compiled for": compiled, "slice (MIG)": sliced, "computes": str(backend)}
        if driver.attribute(number, driver.COMPUTE_MODE):
            raise UserError(
                f"GPU {number} admits only one process at a time (compute mode EXCLUSIVE_PROCESS)",
                "some steps use a GPU from several processes",
                "allow it as root (nvidia-smi -c DEFAULT), or run the other steps: "
                "--only squares gradients 'equal bits' kernels predictions throughput",
            )
    names = "driver_version,memory.total,mig.mode.current,compute_mode,ecc.mode.current,clocks.max.sm,pcie.link.gen.max"
    for query in (["topo", "-m"], [f"--query-gpu={names}", "--format=csv"]):
        if shutil.which("nvidia-smi"):
            yield {"lines": call(["nvidia-smi", *query], range(256)).splitlines()}


def run_tests(selection: str, sanitizer: Sequence[str] = (), markers: str = "") -> Row:
    """Run tests. Return how many passed, and how many were skipped for each reason.

    Args:
        selection: test files, separated by spaces. A colon and an expression for pytest's ``-k`` may follow.
        sanitizer: command of compute-sanitizer, with its flags, that runs pytest.
        markers: expression for pytest's ``-m``. By default, all tests are selected, including slow ones.

    Raises:
        TestFailure: a test failed, or compute-sanitizer reported an error.
        RuntimeError: pytest failed for another reason, or found no tests.
        Skipped: all tests were skipped.
    """
    if missing := [name for name in ("hypothesis", "pytest", "pytest_timeout") if not find_spec(name)]:
        command = shlex.join(["uv", "run", "--group", "gpu-tests", *sys.argv])
        raise Skipped(f"{', '.join(missing)} not installed: run `{command}`")
    files, _, names = selection.partition(":")
    pytest = [sys.executable, "-m", "pytest", "-qx", "-oaddopts=", "--disable-warnings", f"--rootdir={ROOT}"]
    with tempfile.TemporaryDirectory() as folder:
        report, paths = Path(folder) / "report.xml", [str(ROOT / "tests" / file) for file in files.split()]
        options = ["--timeout=1200", "-m", markers, "-k", names.strip(), f"--junit-xml={report}"]
        out = call([*sanitizer, *pytest, *options, *paths], (0, 1))
        cases = list(ET.parse(report).iter("testcase")) if report.exists() else []
    reasons: Counter[str] = Counter()
    for case in cases:
        for outcome in case:
            message = outcome.get("message", "")
            if outcome.tag in ("failure", "error"):
                raise TestFailure(f"{case.get('classname')}.{case.get('name')}: {message}\n{outcome.text}")
            reasons[message] += outcome.tag == "skipped"
    sanitizer_lines = [line for line in out.splitlines() if line.startswith("=========")] if sanitizer else []
    if sanitizer_lines and "SUMMARY: 0 " not in sanitizer_lines[-1]:
        raise TestFailure("\n".join(sanitizer_lines[:60]))
    if not cases:
        raise RuntimeError(out[-3000:])
    if len(cases) == sum(reasons.values()):
        raise Skipped("; ".join(reasons))
    return {"passed": len(cases) - sum(reasons.values()), "skipped": dict(reasons)}


def sanitize(bench: Bench) -> Rows:
    """Run tests of the kernels under each tool of compute-sanitizer."""
    sanitizer = shutil.which("compute-sanitizer", path=f"{os.environ.get('PATH', '')}:/usr/local/cuda/bin")
    if bench.emulated or sanitizer is None:
        missing = "compute-sanitizer is not installed: install NVIDIA's package cuda-sanitizer-12-8 or the CUDA toolkit"
        raise Skipped("the emulator itself checks for the same errors" if bench.emulated else missing)
    for tool in ("memcheck", "racecheck", "synccheck"):
        tests = f"{DRIVER} {ENGINE}: square or gradients_equal or same_rounding"
        yield {"tool": tool, **run_tests(tests, [sanitizer, f"--tool={tool}", "--print-limit=20"])}


def time_kernels(bench: Bench) -> Rows:
    """Time the kernels of each network at the default precision and in float32."""
    bench.prepare()
    for network, precision in ((network, precision) for network, _ in bench.settings for precision in (AUTO, FLOAT32)):
        if bench.emulated and network == "paper" and precision == FLOAT32:
            continue  # The emulator would need minutes.
        # The GPU is used in a separate process, which releases the GPU when it ends.
        with ProcessPoolExecutor(1, get_context("spawn")) as pool:
            yield from pool.submit(kernel_times, bench, network, precision).result(None if bench.emulated else 600)


def kernel_times(bench: Bench, network: Any, precision: Any) -> list[Row]:
    """Time the kernel launches of training steps of a network on long texts.

    On the emulator, count the instructions and the memory accesses of the launches instead.
    """
    os.environ["EMULATOR_COUNTS"] = "1"
    data, device = open_dataset(bench.folder / LONG), Device("gpu", 0)
    split, size = data.splits["train"], EMULATED_DOCUMENTS[network] if bench.emulated else bench.batch
    rows = np.resize(np.arange(len(split)), size)
    # The emulator counts the default sizes of ``crepe``.
    settings = {} if network == "crepe" else dict(bench.settings)[network]
    options = ModelOptions(network=network, precision=precision, **settings)
    shape: Any = network_registry.config_class(network).for_data(options, data.encoder, len(data.classes), len(split))
    backend = choose_backend(options, device, shape)
    engine: Any = create_engine(shape, initial(shape).parameters, backend, device=device)
    step = TrainingStep(engine, engine.create_optimizer(ProcessGroup(), OptimizerOptions(), size))
    batch = pack_batch(split.char_ids(rows), split.labels[rows], size, size)

    def steps(first: int, last: int) -> None:
        for number in range(first, last):
            step(batch, number, 0.001)
        engine.wait()

    steps(1, 4)  # In these steps, the fixed-point scales adapt to the gradients.
    measured = (count_operations if bench.emulated else time_launches)(partial(steps, 4, 4 + bench.steps))
    about = {"network": network, "precision": backend.precision}
    return [{**about, "kernel": name, **figures} for name, figures in measured.items()]


def count_operations(work: Callable[[], None]) -> dict[str, Row]:
    """Count the launches, instructions, bytes, 32-byte sectors and atomics of each emulated kernel."""
    read_counters = ctypes.CDLL(driver.LIBRARY).emulatorCounts
    read_counters.restype = ctypes.c_char_p
    initial_counts = json.loads(read_counters())
    work()
    return {
        kernel: {name: count - initial_counts[kernel][name] for name, count in counts.items()}
        for kernel, counts in json.loads(read_counters()).items()
    }


def time_launches(work: Callable[[], None]) -> dict[str, Row]:
    """Time the kernel launches with CUDA events. Return the number of launches and the microseconds of each kernel."""
    cuda, launch = ctypes.CDLL(driver.LIBRARY), gpu.CudaModule.launch
    timed_launches: list[tuple[str, list[ctypes.c_void_p]]] = []

    def launch_with_events(module: Any, name: str, *arguments: Any, **options: Any) -> None:
        events = [ctypes.c_void_p(), ctypes.c_void_p()]
        for event in events:
            cuda.cuEventCreate(ctypes.byref(event), 0)
        cuda.cuEventRecord(events[0], module._gpu.stream)
        launch(module, name, *arguments, **options)
        cuda.cuEventRecord(events[1], module._gpu.stream)
        timed_launches.append((name, events))

    gpu.CudaModule.launch = launch_with_events  # type: ignore[assignment, method-assign]
    work()
    microseconds, milliseconds = defaultdict(list), ctypes.c_float()
    for kernel, events in timed_launches:
        cuda.cuEventElapsedTime(ctypes.byref(milliseconds), *events)
        for name in (kernel, "all kernels"):
            microseconds[name].append(1000 * milliseconds.value)
    return {name: {"launches": len(times), "us": sum(times)} for name, times in microseconds.items()}


def throughput(bench: Bench) -> Rows:
    """Measure the training throughput of each network in short runs."""
    bench.prepare()
    cases = [(AUTO, size) for size in (1, 2, 4, 8) if size <= driver.gpu_count()]
    for network, _ in bench.settings:
        for precision, processes in [*cases, (FLOAT32, 1)]:
            for data in (LONG, SHORT):
                if bench.emulated and network == "paper" and (data == LONG or precision == FLOAT32):
                    continue  # The emulator would need minutes.
                case = {"network": network, "texts": data, "precision": precision}
                yield {**case, **measure_run(bench, network, data, precision, processes)}


def measure_run(bench: Bench, network: str, data: str, precision: str, processes: int) -> Row:
    """Train a model, and measure the steps of the run.

    The steps of the last epoch are measured. In this epoch, the batches have grown to their maximum size, which is
    ``bench.batch`` documents per process.
    """
    run, start = bench.folder / "runs" / f"{network}-{data}-{precision}-{processes}", time.monotonic()
    batch_size = bench.batch * processes
    grows = batch_size > REFERENCE_BATCH_SIZE
    epochs = 1 + grows * math.ceil(network_registry.config_class(network).batch_growth * batch_size / bench.rows)
    flags = (f"--precision={precision}", f"--batch-size={batch_size}", f"--epochs={epochs}", "--patience=0")
    bench.train(run, network, data, processes, *flags)
    records = map(json.loads, (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    steps = [record for record in records if record["event"] == "step"]
    step = statistics.median(record["milliseconds"] for record in steps if record["epoch"] == epochs)
    times = {"documents/s": 1000 * batch_size / step, "step ms": step, "first ms": steps[0]["milliseconds"]}
    backend = read_json(run / "result.json")["provenance"]["computes"]
    return {"by": f"crepe_dist, {backend}", "processes": processes, **times, "run s": time.monotonic() - start}


def time_pytorch(bench: Bench) -> Rows:
    """Time training steps of the paper's network in PyTorch, which uses cuDNN, on the long texts' number of characters.

    ``peers_worker.py`` builds the network and the optimizer, which is SGD with momentum.
    """
    if bench.emulated:
        raise Skipped("the emulator runs only the kernels of this package")
    try:
        import torch
        from peers_worker import Sizes, torch_batch, torch_network, torch_trainer
    except ImportError as error:
        raise Skipped(f"{error}: to compare with PyTorch, run `uv pip install torch`") from error
    if not torch.cuda.is_available():
        raise Skipped(f"PyTorch {torch.__version__} cannot use the GPU")
    filters, units = paper.SIZES[dict(bench.settings)["paper"]["size"]]
    convolutions = [(taps, pooled) for taps, pooled in paper.CONVOLUTIONS]
    sizes = Sizes(69, 1014, filters, units, 4, convolutions, PAPER_POOL, bench.batch, 1)
    halves = {"bfloat16": torch.bfloat16} if torch.cuda.is_bf16_supported() else {"float16": torch.float16}
    for name, precision in {**halves, FLOAT32: torch.float32}.items():
        network = torch_network(sizes, sliced=False).cuda().to(memory_format=torch.channels_last)
        char_ids, labels = (array.cuda() for array in torch_batch(sizes))
        step, times = torch_trainer(network, char_ids, labels, precision, False), []
        for _ in range(5 + bench.steps):
            torch.cuda.synchronize()
            start = time.monotonic()
            step()
            torch.cuda.synchronize()
            times.append(1000 * (time.monotonic() - start))
        milliseconds = statistics.median(times[5:])
        by = f"PyTorch {torch.__version__}, cuDNN {torch.backends.cudnn.version()}, {name}"
        yield {"by": by, "documents/s": 1000 * bench.batch / milliseconds, "step ms": milliseconds}


# Each step has tests (the argument ``selection`` of ``run_tests``) or a function, and an explanation of a failure.
DRIVER, ENGINE, RUNS = "cuda/test_cuda_driver.py", "engines/test_cuda_engine.py", "cuda/test_cuda_runs.py"
STEPS: dict[str, tuple[str | Callable[[Bench], Rows], str]] = {
    "machine": (describe, """
    This host is not ready to train on a GPU. Follow the instructions in the error message. docs/install.md lists the
    supported versions."""),
    "driver": (f"{DRIVER}: not square and not full and not two_processes and not forked", """
    Copies, warp shuffles, atomics or rounding do not behave as CUDA documents. Either this package calls the driver
    incorrectly, or the driver has a bug. Fix this first, because all later steps depend on the driver."""),
    "squares": (f"{DRIVER}: square", """
    The product of a matrix tile is wrong. Tensor cores (wmma) may store the elements of a tile in a different order
    than the kernels assume. Check MatrixTile in cuda/kernels/product.cuh for the precision and the layout in the
    message."""),
    "gradients": (f"{ENGINE}: gradients_equal or losses_equal or same_rounding or finite", """
    A kernel and its reference compute different results. The reference is the CPU engine or, for 16-bit precisions, a
    network that rounds in the same places. If the gradients of several parameters are wrong, the parameter closest to
    the output shows which kernel is wrong."""),
    "sanitizer": (sanitize, """
    A kernel accesses memory out of bounds (memcheck), has a data race in shared memory (racecheck) or uses a barrier
    incorrectly (synccheck). The message names the kernel."""),
    "equal bits": (f"{ENGINE}: bit_identical or previous_batches or continues_exactly", """
    The same step gave results that are not bit-identical. Likely causes are a data race, a floating-point sum without a
    fixed order, or memory that was not cleared."""),
    "epoch": (f"{ENGINE} {RUNS}: training_equals or epoch_ends or needs_no_mxnet", """
    The gradients are correct, but training on the GPU ends with different parameters than on the CPU. Check the
    optimizer, the data and the state of the run."""),
    "limits": (f"{DRIVER} {RUNS}: full_gpu or two_processes or forked or too_small or not_used", """
    A GPU without free memory, two processes that compile into an empty cache, a forked process or a GPU that cannot be
    used does not have the specified outcome."""),
    "NCCL": ("cuda/test_nccl.py", """
    NCCL's all-reduce returns wrong integer sums, hangs or does not report a lost peer. Try NCCL_P2P_DISABLE=1, and read
    the log of NCCL_DEBUG=INFO. Without NCCL (uv pip uninstall nvidia-nccl-cu12), the ranks sum gradients in host
    memory."""),
    "1, 2, 4 GPUs": (f"{RUNS}: any_number or slices", """
    Training on several GPUs and training on one GPU give different models. Either an all-reduce is wrong, or a result
    depends on the rank. Use one GPU until this is fixed."""),
    "broken runs": (f"{RUNS}: broken and not any_number", """
    After a SIGKILL or a SIGSTOP of one rank, the other ranks hang or report another error, or the resumed run is not
    bit-identical."""),
    "MXNet": ("mxnet_gpu/test_mxnet_gpu.py: computes", "MXNet computes different results on the GPU and on the CPU."),
    "kernels": (time_kernels, "The kernels could not be timed. The results of the earlier steps remain valid."),
    "predictions": (f"{RUNS}: answers", "The predictions on the GPU differ from the predictions on the CPU."),
    "throughput": (throughput, """
    A training run at the default sizes failed. If the earlier steps passed, smaller networks can be trained. Check the
    memory of the GPU and the limits of the kernels."""),
    "PyTorch": (time_pytorch, "PyTorch could not be timed. The results of the earlier steps remain valid."),
}  # fmt: skip


# ---- report ----------------------------------------------------------------------------------------------------------


def run_step(step: Row, bench: Bench, save: Callable[[], None]) -> None:
    """Run a step. Add its outcome and its rows of results to ``step``, and call ``save`` after each row."""
    work, explanation = STEPS[step["step"]]
    start = time.monotonic()
    try:
        markers = "not slow" if bench.emulated else ""
        for row in iter([run_tests(work, markers=markers)]) if isinstance(work, str) else work(bench):
            step["rows"].append(row)
            print(f"  {', '.join(f'{name} {text}' for name, text in cells(row))}", file=sys.stderr, flush=True)
            save()
        step["outcome"] = "passed"
    except Skipped as reason:
        step |= {"outcome": "skipped", "why": str(reason)}
    except Exception as error:
        if isinstance(work, str) and not isinstance(error, TestFailure):
            explanation = "The tests of this step could not be run. No test failed."
        means = " ".join(explanation.split())
        text = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        step |= {"outcome": "FAILED", "means": means, "error": text}
    step["seconds"] = time.monotonic() - start
    save()


def cells(row: Row) -> Iterator[tuple[str, str]]:
    """Yield the names and formatted values of a row for display. Lists are only in the JSON file."""
    for name, value in row.items():
        if isinstance(value, (str, int, float)):
            yield name, f"{value:,.4g}" if isinstance(value, float) else str(value)[:200]
        elif value and isinstance(value, dict):
            yield name, "; ".join(f"{count} × {reason}" for reason, count in value.items())


def summary(report: Row) -> str:
    """Format the report as Markdown."""
    steps = report["steps"]
    failures = [f"The step {step['step']} failed. {step['means']}" for step in steps if "means" in step]
    verdict = failures or ["No step failed."]
    lines = [f"# crepe_dist {report['machine']['crepe_dist']} on {report['on']}", "", *verdict, ""]
    lines += table([{name: step[name] for name in ("step", "outcome", "seconds")} for step in steps])
    for step in steps:
        if step["outcome"] == "not run":
            continue
        lines += ["", f"## {step['step']}: {step['outcome']}", "", *table(step["rows"])]
        lines += [step[name][:3000] for name in ("why", "error") if name in step]
    return "\n".join([*lines, ""])


def table(rows: list[Row]) -> list[str]:
    """Format rows as the lines of a Markdown table."""
    texts = [dict(cells(row)) for row in rows]
    names = list(dict.fromkeys(name for row in texts for name in row))
    lines = [names, ["---"] * len(names), *([row.get(name, "") for name in names] for row in texts)]
    return [f"| {' | '.join(line)} |" for line in lines if names]


def main() -> None:
    flags = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument(
        "--json", type=Path, default=Path("gpu.json"), metavar="FILE", help="file for the results (default: gpu.json)"
    )
    flags.add_argument("--emulator", action="store_true", help="use two emulated GPUs, with small sizes")
    steps_help = f"steps to run (default: all): {', '.join(map(shlex.quote, STEPS))}"
    flags.add_argument("--only", nargs="+", metavar="STEP", choices=STEPS, default=list(STEPS), help=steps_help)
    options = flags.parse_args()
    check_output(options.json, "--json")
    summary_file = options.json.with_suffix(".md")
    if summary_file == options.json:
        flags.error(f"--json: {options.json} is the file name of the summary: choose a name that ends in .json")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # SystemExit makes ``call`` terminate its command.
    with ExitStack() as stack:
        folder, sizes = Path(stack.enter_context(tempfile.TemporaryDirectory())), {}
        if options.emulator:
            sizes = SMALL
            stack.enter_context(cuda_emulator.used())
            stack.enter_context(cuda_emulator.for_processes(DRIVER_GPUS=2))
        else:
            os.environ[cuda_emulator.SWITCH] = "real"
        gpu_counts = Counter(driver.gpu_name(number) for number in range(driver.gpu_count()))
        if not gpu_counts:
            error = driver.no_gpu_error()
            raise UserError(error.what, error.why, error.remedy.replace(driver.FALLBACK_HINT, EMULATOR_HINT))
        gpus = ", ".join(f"{count} × {name}" for name, count in gpu_counts.items())
        gpus += " (an emulator: its times say nothing about the speed of GPUs)" * options.emulator
        bench = Bench(folder, options.emulator, **sizes)
        steps: list[Row] = [{"step": name, "outcome": "not run", "seconds": 0.0, "rows": []} for name in options.only]
        report: Row = {"on": gpus, "machine": hardware.describe(), "steps": steps}

        def save() -> None:
            """Write both files. They are written after each row, in case the script is killed."""
            write_json(options.json, report)
            write_text(summary_file, summary(report))

        for step in steps:
            print(f"{step['step']} …", file=sys.stderr, flush=True)
            run_step(step, bench, save)
            if step["outcome"] == "FAILED":
                break
    print(f"{summary(report)}\nwritten to {options.json} and {summary_file}")
    sys.exit(steps[-1]["outcome"] in ("FAILED", "not run"))


if __name__ == "__main__":
    command_runner.run(main)
