"""Training in N processes of this host under Horovod, beside N that know nothing of each other, in turns."""

from __future__ import annotations

import math
import os
import statistics
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from typing import Any

from crepe_dist.benchmarking.workers import Workers
from crepe_dist.distributed.device import count_gpus
from crepe_dist.distributed.launch import horovodrun
from crepe_dist.model.crepe import CrepeShape
from crepe_dist.timing import in_turns, paired

SIZES = (2, 4)  # of the worlds, as far as each process has a core of its own
KINDS = ("weak", "strong")
PYTHON = (sys.executable, "-m", "crepe_dist.benchmarking.scaling_worker")


def places(on: str = "cpu") -> int:
    """How many processes can have a core, or a GPU, of their own."""
    if on == "cpu":
        return len(os.sched_getaffinity(0))
    return count_gpus()


def obstacle(on: str = "cpu") -> str:
    """Why scaling cannot be measured here, in a few words; empty if it can."""
    if places(on) < 2:
        return f"there is only one {'core' if on == 'cpu' else 'GPU'}"
    if horovodrun() is None:
        return "Horovod is not installed"
    return ""


def run(shape: CrepeShape, batch: int, rounds: int, seconds: float, on: str = "cpu") -> dict[str, Any]:
    """Measures weak scaling (``batch`` documents a process) and strong scaling (``batch`` a step over all processes).

    Every process has one thread and one core. The processes live through all rounds; those whose turn it is not stand
    still.

    Args:
        seconds: of each measurement, at least.
        on: "cpu" or "gpu".

    Returns:
        ``table``, a list of rows: ``scaling`` (none, weak, strong), ``processes``, ``batch`` of a process, ``rate`` in
        documents a second of all, ``independent``, the same of that many processes without Horovod at the same time,
        ``ratio`` of these two, and ``efficiency``, rate / (processes × rate of one alone with ``batch``);
        ``gradient_bytes``; ``allreduce_ms``, of the gradient alone, by number of processes. All are medians of rounds.
    """
    sizes = [size for size in SIZES if size <= places(on)]
    with ExitStack() as stack:
        independent = stack.enter_context(start_independent(max(sizes)))
        worlds = {size: stack.enter_context(start_world(size)) for size in sizes}
        for workers in (independent, *worlds.values()):
            built = workers.ask("build", on=on, **asdict(shape))
        shares = {
            (kind, size): batch if kind == "weak" else math.ceil(batch / size) for size in sizes for kind in KINDS
        }
        runs = {"alone": training(independent, batch, seconds, only=1)}
        for (kind, size), share in shares.items():
            runs[f"{kind} {size} together"] = training(worlds[size], share, seconds)
            runs[f"{kind} {size} apart"] = training(independent, share, seconds, only=size)
        rates = in_turns(runs, rounds)
        allreduce = {size: 1000 * allreduce_seconds(workers, rounds) for size, workers in worlds.items()}
    table = [_row("none", 1, batch, rates["alone"], rates["alone"], rates["alone"])]
    for (kind, size), share in shares.items():
        together, apart = rates[f"{kind} {size} together"], rates[f"{kind} {size} apart"]
        table.append(_row(kind, size, share, together, apart, rates["alone"]))
    return {"table": table, "gradient_bytes": built[0]["bytes"], "allreduce_ms": allreduce}


def weak_ratio(result: Mapping[str, Any], size: int) -> float:
    """Weak scaling: the rate of ``size`` processes under Horovod / that of as many independent ones."""
    rows = result["table"]
    return next(float(row["ratio"]) for row in rows if (row["scaling"], row["processes"]) == ("weak", size))


def start_world(size: int) -> Workers:
    """That many processes of this host under Horovod."""
    return Workers([[str(horovodrun()), "-np", str(size), *PYTHON]], size, environment())


def start_independent(size: int) -> Workers:
    return Workers([[*PYTHON, "--number", str(number)] for number in range(size)], size, environment())


def environment() -> dict[str, str]:
    """Of workers: one thread; and Gloo must not take a peer that stands still for a dead one (its default: 30 s)."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "HOROVOD_GLOO_TIMEOUT_SECONDS": "3600"}


def training(workers: Workers, batch: int, seconds: float, only: int | None = None) -> Callable[[], float]:
    """A call that trains for about ``seconds`` and returns the documents a second of all workers together.

    All take the same number of steps, which the first call finds after one that compiles.
    """
    steps = 0

    def call() -> float:
        nonlocal steps
        if steps == 0:
            workers.ask("train", only, batch=batch, steps=1)
            steps = math.ceil(seconds / _longest(workers.ask("train", only, batch=batch, steps=1)))
        return float(sum(answer["rate"] for answer in workers.ask("train", only, batch=batch, steps=steps)))

    return call


def allreduce_seconds(workers: Workers, times: int) -> float:
    """The median of ``times`` all-reduces of the gradient, after one that is not counted."""
    answers = workers.ask("allreduce", times=times + 1)
    return float(statistics.median(max(of_ranks) for of_ranks in list(zip(*(a["seconds"] for a in answers)))[1:]))


def _row(
    kind: str, size: int, batch: int, together: Sequence[float], apart: Sequence[float], alone: Sequence[float]
) -> dict[str, Any]:
    return {
        "scaling": kind,
        "processes": size,
        "batch": batch,
        "rate": statistics.median(together),
        "independent": statistics.median(apart),
        "ratio": paired(together, apart),
        "efficiency": paired(together, alone) / size,
    }


def _longest(answers: Iterable[Mapping[str, float]]) -> float:
    return max(answer["seconds"] for answer in answers)
