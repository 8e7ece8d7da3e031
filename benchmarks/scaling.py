"""Measure scaling on one host: N processes under Horovod are compared with N independent processes.

All processes exist during the whole measurement, and take turns. A process is stopped (SIGSTOP) while others have their
turn, because Horovod's background thread polls, which takes 5 to 10 % of a core.
"""

import math
import os
import shutil
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from timing import in_turns, paired
from workers import Workers

from crepe_dist import hardware
from crepe_dist.cuda import driver

if TYPE_CHECKING:
    from crepe_dist.networks.paper.config import PaperConfig

SIZES = (2, 4)  # numbers of ranks; numbers above the number of cores or GPUs are left out
KINDS = ("weak", "strong")
WORKER = (sys.executable, str(Path(__file__).with_name("scaling_worker.py")))


def run(shape: "PaperConfig", batch: int, rounds: int, seconds: float, on: str = "cpu") -> dict[str, Any]:
    """Measure weak scaling (``batch`` documents per process) and strong scaling (``batch`` over all processes).

    On a CPU, every process has one thread and one core.

    Args:
        rounds: number of measurements of each kind.
        seconds: minimum duration of a measurement.
        on: ``cpu`` or ``gpu``.

    Returns:
        A dictionary of medians over the rounds:

        * ``table``: rows with ``scaling`` (none, weak, strong), ``processes``, ``batch`` (per process), ``rate``
          (documents/s of all processes), ``independent`` (the rate of as many independent processes), ``ratio``
          (rate / independent) and ``efficiency`` (rate / (processes × rate of one process with ``batch``));
        * ``gradient_bytes``: size of the gradients in bytes.
    """
    sizes = [size for size in SIZES if size <= slots(on)]
    with ExitStack() as stack:
        independent = stack.enter_context(start_independent(max(sizes), on))
        jobs = {size: stack.enter_context(start_job(size, on)) for size in sizes}
        for workers in (independent, *jobs.values()):
            workers.ask("build", on=on, **asdict(shape))
        local_batches = {
            (kind, size): batch if kind == "weak" else math.ceil(batch / size) for size in sizes for kind in KINDS
        }
        runs = {"alone": training(independent, batch, seconds, only=1)}
        for (kind, size), local_batch in local_batches.items():
            runs[f"{kind} {size} job"] = training(jobs[size], local_batch, seconds)
            runs[f"{kind} {size} independent"] = training(independent, local_batch, seconds, only=size)
        rates = in_turns(runs, rounds)
    table = [_row("none", 1, batch, rates["alone"], rates["alone"], rates["alone"])]
    for (kind, size), local_batch in local_batches.items():
        job_rates, independent_rates = rates[f"{kind} {size} job"], rates[f"{kind} {size} independent"]
        table.append(_row(kind, size, local_batch, job_rates, independent_rates, rates["alone"]))
    return {"table": table, "gradient_bytes": 4 * shape.num_parameters}


def obstacle(on: str = "cpu") -> str:
    """Return the reason why scaling cannot be measured on this host, or an empty text if it can be measured."""
    if slots(on) < 2:
        return f"there is only one {'core' if on == 'cpu' else 'GPU'}"
    return "" if shutil.which("horovodrun") else "Horovod is not installed"


def slots(on: str) -> int:
    """Return the number of cores or GPUs. Each core or GPU can run one process."""
    return hardware.num_cores() if on == "cpu" else driver.gpu_count()


def weak_ratio(result: Mapping[str, Any], size: int) -> float:
    """Return the ratio of weak scaling: the rate of ``size`` processes under Horovod / that many independent ones."""
    rows = result["table"]
    return next(float(row["ratio"]) for row in rows if (row["scaling"], row["processes"]) == ("weak", size))


def start_job(size: int, on: str = "cpu") -> Workers:
    """Start ``size`` workers under Horovod on this host."""
    return Workers([["horovodrun", "-np", str(size), *WORKER, on]], size, environment(on))


def start_independent(size: int, on: str = "cpu") -> Workers:
    """Start ``size`` workers that do not communicate with each other."""
    return Workers([[*WORKER, on, "--number", str(number)] for number in range(size)], size, environment(on))


def environment(on: str = "cpu") -> dict[str, str]:
    """Return the environment of a worker. On a CPU, a worker has one thread. Gloo must wait while a peer is stopped."""
    threads = {"OMP_NUM_THREADS": "1"} if on == "cpu" else {}
    return {**os.environ, **threads, "HOROVOD_GLOO_TIMEOUT_SECONDS": "3600"}  # default: 30 s


def training(workers: Workers, batch: int, seconds: float, only: int | None = None) -> Callable[[], float]:
    """Return a function that trains for about ``seconds`` and returns the sum of the workers' documents/s.

    Its first call trains two steps: one step for compilation, and one that is timed. The time of the second step
    determines the number of steps of all later calls, which is the same for all workers.

    Args:
        only: number of workers that train; default: all.
    """
    steps = 0

    def call() -> float:
        nonlocal steps
        if steps == 0:
            workers.ask("train", only, batch=batch, steps=1)
        answers = workers.ask("train", only, batch=batch, steps=max(1, steps))
        steps = steps or math.ceil(seconds / max(answer["seconds"] for answer in answers))
        return float(sum(answer["rate"] for answer in answers))

    return call


def _row(
    kind: str, size: int, batch: int, job: Sequence[float], independent: Sequence[float], alone: Sequence[float]
) -> dict[str, Any]:
    return {
        "scaling": kind,
        "processes": size,
        "batch": batch,
        "rate": statistics.median(job),
        "independent": statistics.median(independent),
        "ratio": paired(job, independent),
        "efficiency": paired(job, alone) / size,
    }
