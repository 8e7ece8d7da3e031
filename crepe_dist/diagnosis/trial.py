"""What is tried: a few processes of this machine form a group, sum known numbers and train a step on a device."""

from __future__ import annotations

import io
import os
import re
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable

from crepe_dist.diagnosis.inventory import Facts
from crepe_dist.diagnosis.outcome import Check
from crepe_dist.distributed import cuda
from crepe_dist.distributed.hosts import Host
from crepe_dist.errors import UserError
from crepe_dist.files import read_json
from crepe_dist.supervising.console import Console
from crepe_dist.supervising.supervisor import Supervisor
from crepe_dist.supervising.supervisor_options import Options
from crepe_dist.wording import counted

WORKER = (sys.executable, "-m", "crepe_dist.diagnosis.trial_worker")
SECONDS = 120.0  # imports on a slow disk; a GPU compiles at its first step
GRACE_SECONDS = 2.0  # from asking to stop to killing
LAST_WORDS = 8  # lines
EMPTY = re.compile(r"\[rank \d+\]")  # what the console makes of an empty line
MEND = "mend what stands above, if anything; else report it with all of this text"


@dataclass(frozen=True)
class Trial:
    """What came of one group.

    Attributes:
        device: cpu or gpu.
        processes: how many were started.
        ranks: what each rank wrote, by stage (``crepe_dist.diagnosis.trial_worker``); shorter if one did not end it.
        trouble: why the processes did not end well, with the last they said, or ''.
    """

    device: str
    processes: int
    seconds: float
    ranks: list[dict[str, Any]]
    trouble: str = ""

    def stage(self, name: str) -> list[dict[str, Any]]:
        """The results of all ranks; none where one is missing."""
        found = [rank[name] for rank in self.ranks if name in rank]
        return found if len(found) == self.processes else []


def attempt(
    device: str,
    processes: int,
    seconds: float = SECONDS,
    command: Sequence[str] = WORKER,
    environment: Mapping[str, str] = os.environ,
) -> Trial:
    """Starts the processes under the project's own supervisor, on loopback, and waits for their end.

    Args:
        seconds: after which they are asked to stop and, ``GRACE_SECONDS`` later, killed.
        command: of each; device and folder are appended.
    """
    heard = io.StringIO()
    options = Options(processes, (Host("localhost", processes),), max_restarts=0, grace=GRACE_SECONDS)
    began, trouble = time.monotonic(), ""
    with tempfile.TemporaryDirectory() as folder:
        supervisor = Supervisor([*command, device, folder], options, environment, console=Console(heard, heard))
        timer = threading.Timer(seconds, supervisor.signal, [signal.SIGTERM])
        timer.daemon = True
        timer.start()
        try:
            if supervisor.run() != 0:
                trouble = _last_words(heard.getvalue())
        except UserError as error:
            trouble = f"{error.what}: {error.why or _last_words(heard.getvalue())}"
        finally:
            timer.cancel()
        passed = time.monotonic() - began
        if passed >= seconds:
            trouble = f"not done after {seconds:g} s, and ended; the last they said: {_last_words(heard.getvalue())}"
        return Trial(device, processes, passed, [_read(folder, rank) for rank in range(processes)], trouble)


def _read(folder: str, rank: int) -> dict[str, Any]:
    try:
        return dict(read_json(Path(folder) / f"rank_{rank}.json"))
    except FileNotFoundError:
        return {}


def _last_words(heard: str) -> str:
    lines = [line.strip() for line in heard.splitlines()]
    return " | ".join([line for line in lines if line and not EMPTY.fullmatch(line)][-LAST_WORDS:])


def trials(facts: Facts, say: Callable[[str], None], run: Callable[[str, int], Trial] = attempt) -> Iterator[Trial]:
    """Those that this machine can do: two processes on the CPU, then one each GPU; without Horovod one process.

    GPUs are left out where MXNet has no code for one of them.

    Args:
        say: told what begins.
    """
    if facts["mxnet"]["trouble"]:
        return
    features = facts["horovod"].get("features", {})
    together = bool(features.get("gloo"))
    gpus = int(facts["mxnet"]["gpus"])
    if not all(each["capability"] is None or cuda.has_code_for(tuple(each["capability"])) for each in facts["gpus"]):
        gpus = 0  # the line of that GPU says what there is to say
    together_on_gpus = together and features.get("cuda", False)

    def tried(device: str, processes: int) -> Trial:
        say(f"trying {counted(processes, 'process', 'processes')} on the {device.upper()} …")
        return run(device, processes)

    first = tried("cpu", 2 if together else 1)
    yield first
    if first.processes > 1 and any(check.level == "problem" for check in judge(first)):
        yield tried("cpu", 1)
    if gpus == 1:
        # NCCL takes a GPU for one process only.
        yield tried("gpu", 2 if together_on_gpus and not features.get("nccl") else 1)
    elif gpus > 1:
        yield tried("gpu", gpus if together_on_gpus else 1)


def judge(trial: Trial) -> list[Check]:
    """The lines of the diagnosis for one trial."""
    where = f"{trial.device.upper()}, {counted(trial.processes, 'process', 'processes')}"
    lines = [_all_reduce(trial, where)] if trial.processes > 1 else []
    return lines if any(line.level == "problem" for line in lines) else [*lines, _step(trial, where)]


def _all_reduce(trial: Trial, where: str) -> Check:
    name, sums = "all-reduce", trial.stage("sum")
    if not sums:
        what = f"{trial.processes} processes of this machine do not come to sum numbers"
        return Check(name, f"{where}: failed", "problem", what, trial.trouble, MEND)
    wrong = [rank for rank, each in enumerate(sums) if each["wrong"]]
    if wrong:
        return Check(
            name,
            f"{where}: wrong sums",
            "problem",
            f"the sums of {_ranks(wrong)} are wrong: {sums[wrong[0]]['wrong']:,} of {sums[wrong[0]]['numbers']:,}",
            "a fault of memory, of the network, or of the build of Horovod",
            "build Horovod anew (`uv sync --reinstall-package horovod`); test the memory of this machine",
        )
    return Check(name, f"{where}: {sums[0]['numbers']:,} sums, all right")


def _step(trial: Trial, where: str) -> Check:
    name, steps = "training step", trial.stage("step")
    if not steps:
        return Check(name, f"{where}: failed", "problem", f"a training step fails: {where}", trial.trouble, MEND)
    first = steps[0]
    if what := _wrong_weights(steps):
        why = "a fault of memory, of a device, or of the build of Horovod or of the kernels"
        remedy = "install again; test the memory of this machine; try --device cpu or --model.kernels mxnet"
        return Check(name, f"{where}: wrong weights", "problem", what, why, remedy)
    if trial.trouble:
        what = f"the processes train, but do not end well: {where}"
        return Check(name, f"{where}: trained, but did not end well", "problem", what, trial.trouble, MEND)
    summed = f"; summed by {first['summed by']}, weights the same bit for bit" if trial.processes > 1 else ""
    return Check(name, f"{where}: {first['computed']}{summed}")


def _wrong_weights(steps: list[dict[str, Any]]) -> str:
    """What is wrong with the weights that the ranks tell of, or ''."""
    first = steps[0]
    for when, said in (("before", "before the step"), ("after", "after one step")):
        if other := [rank for rank, each in enumerate(steps) if each[when] != first[when]]:
            return f"the weights of {_ranks(other)} differ from those of rank 0 {said}"
    if not all(each["finite"] for each in steps):
        return "the weights hold an infinity or NaN after one step"
    return "the weights are the same before and after a step" if first["before"] == first["after"] else ""


def _ranks(numbers: list[int]) -> str:
    return f"rank {', '.join(map(str, numbers))}"
