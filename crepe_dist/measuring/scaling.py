"""Training in N processes of this host under Horovod, beside N that know nothing of each other, in turns."""

from __future__ import annotations

import math
import os
import statistics
import sys
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import asdict
from typing import Any, Callable

from crepe_dist.cluster.launch import horovodrun
from crepe_dist.measuring.timing import alternate
from crepe_dist.measuring.workers import Workers
from crepe_dist.model.network import Shape

SIZES = (2, 4)  # of the worlds, as far as each process has a core of its own
PYTHON = (sys.executable, "-m", "crepe_dist.measuring.scaling_worker")


def obstacle() -> str:
    """Why scaling cannot be measured here, in a few words; empty if it can."""
    if len(os.sched_getaffinity(0)) < 2:
        return "there is only one core"
    if horovodrun() is None:
        return "Horovod is not installed"
    return ""


def run(shape: Shape, batch: int, rounds: int, seconds: float) -> dict[str, Any]:
    """Measures weak scaling (``batch`` documents a process) and strong scaling (``batch`` a step over all processes).

    Every process has one thread and one core. The processes live through all rounds; those whose turn it is not wait
    on a socket. Horovod's thread of an idle group still wakes every millisecond (HOROVOD_CYCLE_TIME).

    Args:
        seconds: of each measurement, at least.

    Returns:
        ``table``, a list of rows: ``scaling`` (weak, strong), ``processes``, ``batch`` of a process, ``rate`` in
        documents a second of all, ``independent``, the same of that many processes without Horovod at the same time,
        and the ``efficiency``, rate / (processes × rate of one alone with the batch of weak scaling);
        ``gradient_bytes``; ``allreduce_ms``, of the gradient alone, by number of processes.
    """
    sizes = [size for size in SIZES if size <= len(os.sched_getaffinity(0))]
    with ExitStack() as stack:
        independent = stack.enter_context(start_independent(max(sizes)))
        worlds = {size: stack.enter_context(start_world(size)) for size in sizes}
        for workers in (independent, *worlds.values()):
            built = workers.ask("build", **asdict(shape))
        cases: dict[tuple[str, int], tuple[Callable[[], float], Callable[[], float]]] = {
            (kind, size): (
                training(worlds[size], share, seconds),
                training(independent, share, seconds, only=size),
            )
            for size in sizes
            for kind, share in (("weak", batch), ("strong", math.ceil(batch / size)))
        }
        runs = {"alone": training(independent, batch, seconds, only=1)}
        for (kind, size), (together, apart) in cases.items():
            runs |= {f"{kind} {size} together": together, f"{kind} {size} apart": apart}
        rates = alternate(runs, rounds)
        allreduce = {size: 1000 * allreduce_seconds(workers, rounds) for size, workers in worlds.items()}
    alone = rates["alone"]
    table = [
        {
            "scaling": kind,
            "processes": size,
            "batch": batch if kind == "weak" else math.ceil(batch / size),
            "rate": rates[f"{kind} {size} together"],
            "independent": rates[f"{kind} {size} apart"],
            "efficiency": rates[f"{kind} {size} together"] / (size * alone),
        }
        for kind, size in cases
    ]
    first = {"scaling": "none", "processes": 1, "batch": batch, "rate": alone, "independent": alone, "efficiency": 1.0}
    return {"table": [first, *table], "gradient_bytes": built[0]["bytes"], "allreduce_ms": allreduce}


def ratio(result: Mapping[str, Any], size: int = 2) -> float:
    """Weak scaling: the rate of ``size`` processes under Horovod / that of as many independent ones."""
    row = next(row for row in result["table"] if row["scaling"] == "weak" and row["processes"] == size)
    return float(row["rate"] / row["independent"])


def start_world(size: int) -> Workers:
    """That many processes of this host under Horovod."""
    return Workers([[str(horovodrun()), "-np", str(size), *PYTHON]], size, environment())


def start_independent(size: int) -> Workers:
    return Workers([[*PYTHON, "--number", str(number)] for number in range(size)], size, environment())


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1"}


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
        return sum(answer["rate"] for answer in workers.ask("train", only, batch=batch, steps=steps))

    return call


def allreduce_seconds(workers: Workers, times: int) -> float:
    """The median of ``times`` all-reduces of the gradient, after one that is not counted."""
    answers = workers.ask("allreduce", times=times + 1)
    return statistics.median(max(of_ranks) for of_ranks in list(zip(*(a["seconds"] for a in answers)))[1:])


def _longest(answers: Iterable[Mapping[str, float]]) -> float:
    return max(answer["seconds"] for answer in answers)
