"""Trials: processes on this machine form a group, all-reduce known numbers and train one step on a device."""

from __future__ import annotations

import io
import re
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable

from crepe_dist.diagnosis.checks import on_gpus
from crepe_dist.diagnosis.inventory import Facts
from crepe_dist.diagnosis.networks import DEFAULT, NETWORKS
from crepe_dist.diagnosis.outcome import Check
from crepe_dist.distributed.control import Control, Stopped
from crepe_dist.errors import UserError
from crepe_dist.files import read_json
from crepe_dist.scratch import scratch
from crepe_dist.supervising.console import Console
from crepe_dist.supervising.driver import Driver, Ranks
from crepe_dist.wording import counted

WORKER = ("-m", "crepe_dist.diagnosis.trial_worker")
SECONDS = 120.0  # enough for imports from a slow disk, and for a GPU to compile its first step
GRACE_SECONDS = 2.0  # between SIGTERM and SIGKILL
LAST_LINES = 8
EMPTY = re.compile(r"\[rank \d+\]")  # an empty line, after the console's prefix
REMEDY = "fix the problems above, if there are any; otherwise report this with the whole output"


@dataclass(frozen=True)
class Trial:
    """Outcome of one trial.

    Attributes:
        device: ``cpu`` or ``gpu``.
        ranks: results of each rank by stage (see ``trial_worker``); a stage that did not end is missing.
        trouble: reason why the processes failed, with their last output; '' if they did not.
    """

    device: str
    processes: int
    seconds: float
    ranks: list[dict[str, Any]]
    trouble: str = ""

    def stage(self, name: str) -> list[dict[str, Any]]:
        """Return the results of all ranks; an empty list if one is missing."""
        results = [rank[name] for rank in self.ranks if name in rank]
        return results if len(results) == self.processes else []


def attempt(
    device: str,
    processes: int,
    seconds: float = SECONDS,
    command: Sequence[str] = WORKER,
    environment: Mapping[str, str] | None = None,
) -> Trial:
    """Run a trial on the loopback interface.

    Args:
        seconds: timeout, after which the processes get SIGTERM and, ``GRACE_SECONDS`` later, SIGKILL.
        command: arguments of Python for each process; the device and a folder are appended.
        environment: variables of the processes beside those of this one.
    """
    output = io.StringIO()
    start, trouble = time.monotonic(), ""
    with scratch() as folder, Control() as control:
        ranks, console = Ranks(environment), Console(output, output)
        arguments = [*command, device, str(folder)]
        driver = Driver(ranks, arguments, processes, 0, control, grace=GRACE_SECONDS, console=console)
        timer = threading.Timer(seconds, control.ask, ["the time is over"])
        timer.daemon = True
        timer.start()
        try:
            driver.run()
        except UserError as error:
            trouble = _last_lines(f"{output.getvalue()}\n{error.what}")
        except Stopped:
            if time.monotonic() - start < seconds:  # a signal to this process
                raise
        finally:
            timer.cancel()
        elapsed = time.monotonic() - start
        if elapsed >= seconds:
            trouble = f"timed out after {seconds:g} s; the last output was: {_last_lines(output.getvalue())}"
        return Trial(device, processes, elapsed, [_read(folder, rank) for rank in range(processes)], trouble)


def _read(folder: Path, rank: int) -> dict[str, Any]:
    try:
        return dict(read_json(folder / f"rank_{rank}.json"))
    except FileNotFoundError:
        return {}


def _last_lines(output: str) -> str:
    lines = [line.strip() for line in output.splitlines()]
    return " | ".join([line for line in lines if line and not EMPTY.fullmatch(line)][-LAST_LINES:])


def trials(facts: Facts, say: Callable[[str], None], run: Callable[[str, int], Trial] = attempt) -> Iterator[Trial]:
    """Run the trials that this machine can do.

    Two processes train on the CPU, then one on each GPU; without Horovod it is one process. GPUs are skipped if nothing
    can compute the default network on one of them.
    """
    if facts["mxnet"]["trouble"]:
        return
    features = facts["horovod"].get("features", {})
    can_meet = bool(features.get("gloo"))
    engines = {each[DEFAULT]["kernels"] for each in on_gpus(facts)}
    gpus = 0 if "" in engines else len(facts["gpus"])  # the check of that GPU reports it
    together_on_gpus = can_meet and (engines == {"own"} or features.get("cuda", False))

    def tried(device: str, processes: int) -> Trial:
        say(f"trying {counted(processes, 'process', 'processes')} on the {device.upper()} …")
        return run(device, processes)

    first = tried("cpu", 2 if can_meet else 1)
    yield first
    if first.processes > 1 and any(check.level == "problem" for check in judge(first)):
        yield tried("cpu", 1)
    if gpus == 1:
        # NCCL, Horovod's or our own, allows one process per GPU.
        nccl = facts["cuda"]["nccl"] if engines == {"own"} else features.get("nccl")
        yield tried("gpu", 2 if together_on_gpus and not nccl else 1)
    elif gpus > 1:
        yield tried("gpu", gpus if together_on_gpus else 1)


def judge(trial: Trial) -> list[Check]:
    """Turn a trial into checks."""
    where = f"{trial.device.upper()}, {counted(trial.processes, 'process', 'processes')}"
    lines = [_all_reduce(trial, where)] if trial.processes > 1 else []
    return lines if any(line.level == "problem" for line in lines) else [*lines, _step(trial, where)]


def _all_reduce(trial: Trial, where: str) -> Check:
    name, sums = "all-reduce", trial.stage("sum")
    if not sums:
        what = f"the all-reduce of {trial.processes} processes on this machine fails"
        return Check(name, f"{where}: failed").problem(what, trial.trouble, REMEDY)
    wrong = [rank for rank, result in enumerate(sums) if result["wrong"]]
    if wrong:
        return Check(name, f"{where}: wrong sums").problem(
            f"the sums of {_ranks(wrong)} are wrong: {sums[wrong[0]]['wrong']:,} of {sums[wrong[0]]['numbers']:,}",
            "memory or the network is faulty, or Horovod was built wrongly",
            "rebuild Horovod (`uv sync --inexact --group horovod --reinstall-package horovod`); test the memory of "
            "this machine",
        )
    return Check(name, f"{where}: {sums[0]['numbers']:,} sums, all correct")


def _step(trial: Trial, where: str) -> Check:
    name = "training step"
    networks: dict[str, list[str]] = {}  # by what computes them
    for kind in NETWORKS:
        steps = trial.stage(kind)
        if not steps:
            what = f"a training step of the network {kind} fails: {where}"
            return Check(name, f"{where}: {kind} failed").problem(what, trial.trouble, REMEDY)
        if not all(steps):  # nothing computes the network on this device
            continue
        if what := _wrong_weights(steps):
            why = "memory or a device is faulty, or Horovod or the kernels were built wrongly"
            remedy = "reinstall; test the memory of this machine; try --device cpu or --kernels mxnet"
            return Check(name, f"{where}: wrong weights of the network {kind}").problem(what, why, remedy)
        summed = f"; summed by {steps[0]['summed by']}, weights bit-identical" if trial.processes > 1 else ""
        networks.setdefault(f"{steps[0]['computed']}{summed}", []).append(kind)
    if trial.trouble:
        what = f"the processes train, but fail at their end: {where}"
        return Check(name, f"{where}: trained, but failed at the end").problem(what, trial.trouble, REMEDY)
    return Check(name, f"{where}: " + "; ".join(f"{', '.join(kinds)}: {by}" for by, kinds in networks.items()))


def _wrong_weights(steps: list[dict[str, Any]]) -> str:
    """Describe a fault in the weights reported by the ranks; '' if there is none."""
    first = steps[0]
    for key, when in (("before", "before the step"), ("after", "after one step")):
        if other := [rank for rank, result in enumerate(steps) if result[key] != first[key]]:
            return f"the weights of {_ranks(other)} differ from those of rank 0 {when}"
    if not all(result["finite"] for result in steps):
        return "the weights contain an infinity or NaN after one step"
    return "a step does not change the weights" if first["before"] == first["after"] else ""


def _ranks(numbers: list[int]) -> str:
    return f"rank {', '.join(map(str, numbers))}"
