"""Runs with injected faults, and the unbroken run to compare them with."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import crepe_dist
from crepe_dist.files.json_file import write_json
from crepe_dist.runs import resume_state
from tests.conftest import QUICK, launch_prefix
from tests.helpers.programs import program

SETTINGS = (*QUICK, f"--config={Path(__file__).with_name('settings.yaml')}")
STEPS = 39  # Number of steps of a run: 301 rows in batches of 25, three epochs.


def slow(*values: Any) -> Any:
    """Return parameters of a test that runs only with ``-m slow``."""
    return pytest.param(*values, marks=pytest.mark.slow)


def command(run_dir: Path, data: Path, processes: int = 1, *more: str, module: str = "tests.chaos.worker") -> list[str]:
    return [
        *launch_prefix(processes),
        *(sys.executable, "-m", module),
        *("--data", str(data), "--run-dir", str(run_dir), *SETTINGS, *more),
    ]


def supervise(run_dir: Path, data: Path, processes: int, *more: str, flags: Sequence[str] = ()) -> list[str]:
    """Return ``command`` under the supervisor, which costs half the processor time of ``horovodrun``.

    Args:
        flags: Flags of the supervisor.
    """
    flags_of_train = command(run_dir, data, 1, *more)[3:]
    return program("chaos/supervise.py", "-np", processes, *flags, *flags_of_train)


def environment(fault: dict[str, Any] | None = None) -> dict[str, str]:
    """Return the environment of a run, with the planned fault if there is one."""
    before = [path for path in [os.environ.get("PYTHONPATH")] if path]
    root = os.pathsep.join([str(Path(__file__).parents[2]), *before])
    if fault is None:
        return {**os.environ, "PYTHONPATH": root}
    plan = Path(fault["once"] + ".plan")
    write_json(plan, fault)
    return {**os.environ, "PYTHONPATH": root, "CREPE_DIST_FAULT": str(plan)}


@dataclass
class Trial:
    """Run with injected faults, and the same run without faults.

    Attributes:
        unbroken: Function that returns the folder of an undisturbed run with further flags. The run has one process,
            because the number of processes does not change the result.
    """

    data: Path
    folder: Path
    unbroken: Callable[..., Path]

    @property
    def run_dir(self) -> Path:
        return self.folder / "run"

    @property
    def has_struck(self) -> bool:
        return (self.folder / "struck").exists()

    def fault(self, kind: str, step: int, rank: int = 0, phase: str = "train", **more: Any) -> dict[str, Any]:
        """Plan a fault that occurs once, after the earlier faults."""
        once = self.folder / "struck"
        if once.exists():
            once.unlink()
        return {"kind": kind, "rank": rank, "phase": phase, "step": step, "once": str(once), **more}

    def run(
        self, processes: int = 1, *more: str, fault: dict[str, Any] | None = None, supervised: bool = False
    ) -> tuple[int, str]:
        """Run until the fault or to the end. Return the exit code and the output.

        Args:
            supervised: Whether the processes run under the supervisor without restarts, instead of ``horovodrun``.
        """
        if supervised:
            arguments = supervise(self.run_dir, self.data, processes, *more, flags=("--max-restarts", "0"))
        else:
            arguments = command(self.run_dir, self.data, processes, *more)
        return run(arguments, self.folder, fault)

    def kill(
        self,
        step: int,
        processes: int = 1,
        *more: str,
        rank: int = 0,
        phase: str = "train",
        supervised: bool = False,
    ) -> int:
        """Run until a process is killed. Return the step of the newest state."""
        fault = self.fault("SIGKILL", step, rank, phase)
        code, printed = self.run(processes, *more, fault=fault, supervised=supervised)
        assert code != 0, printed
        assert self.has_struck, printed
        return saved_step(self.run_dir)

    def resume(self, processes: int = 1, *more: str) -> str:
        """Run to the end, compare the result with that of the undisturbed run, and return the output."""
        code, printed = self.run(processes, *more)
        assert code == 0, printed
        assert_same(self.run_dir, self.unbroken(*more))
        return printed


def start(arguments: Sequence[str], cwd: Path, fault: dict[str, Any] | None = None) -> subprocess.Popen[str]:
    return subprocess.Popen(
        arguments,
        cwd=cwd,
        env=environment(fault),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Wait for the end of a process. Return its exit code and its output."""
    try:
        printed, _ = process.communicate()
    except BaseException:  # The time limit of the test has passed.
        process.kill()
        print(process.communicate()[0])
        raise
    return process.returncode, printed


def run(arguments: Sequence[str], cwd: Path, fault: dict[str, Any] | None = None) -> tuple[int, str]:
    return finish(start(arguments, cwd, fault))


def wait_for(condition: Callable[[], Any]) -> None:
    """Wait for a condition without a limit of its own, because a busy machine may need long. The test has a limit."""
    while not condition():
        time.sleep(0.02)


def processes(text: str, file: str = "cmdline") -> list[int]:
    """List the processes whose command line, or another file in /proc, contains a text."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if text.encode() in (entry / file).read_bytes():
                found.append(int(entry.name))
    return found


def saved_step(run_dir: Path) -> int:
    """Return the step of the newest intact state, or 0 if there is none."""
    found = resume_state.load_newest(run_dir / "state")
    return found.state.progress.step if found else 0


def has_saved(run_dir: Path) -> bool:
    """Return whether a state was saved after the initial one."""
    return any(int(path.name[5:13]) for path in run_dir.glob("state/step_*"))


def result(run_dir: Path) -> dict[str, np.ndarray]:
    """Return the parameters of the selected checkpoint of a finished run."""
    assert (run_dir / "result.json").is_file()
    return crepe_dist.load(run_dir, device="cpu").engine.arrays


def assert_same(run_dir: Path, unbroken: Path) -> None:
    """Check that two runs have bit-identical parameters, and the same steps and losses in their metrics."""
    mine, theirs = result(run_dir), result(unbroken)
    assert mine.keys() == theirs.keys()
    for name, array in theirs.items():
        assert np.array_equal(mine[name], array), name
    assert steps(run_dir) == steps(unbroken)


def steps(run_dir: Path) -> list[tuple[int, float]]:
    lines = map(json.loads, (run_dir / "metrics.jsonl").read_text().splitlines())
    return [(each["step"], each["loss"]) for each in lines if each["event"] == "step"]
