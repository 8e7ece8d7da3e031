"""Random faults in sequence, under the supervisor; the run is bit-identical to an unbroken one."""

from __future__ import annotations

import json
import os
import random
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from crepe_dist.errors import ExitCode
from crepe_dist.files import write_json
from tests.chaos import harness
from tests.chaos.test_state_on_disk import fill
from tests.chaos.test_supervised import supervise
from tests.helpers.needs import needs

# The fault of the worker that begins each kind.
STRIKES = {
    "SIGKILL": "SIGKILL",
    "SIGSTOP": "SIGSTOP",
    "SIGTERM": "SIGTERM",
    "cut file": "SIGKILL",
    "full disk": "mark",
    "NaN": "nan",
}
PACE = 0.03  # seconds before each step, so that the run does not end before the faults do
EPOCHS = 4  # a fault
LONGEST = 150.0  # seconds from a fault to the first step after it

pytestmark = [pytest.mark.slow, needs("mount", root=True)]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "none", str(folder)], check=True)
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


class Soak:
    """A run that is started again after each fault that ends it."""

    def __init__(self, run_dir: Path, command: list[str], folder: Path) -> None:
        self.run_dir = run_dir
        self.plan = folder / "plan.json"
        self._command = command
        self._folder = folder
        self._log = folder / "log.txt"
        self.process: subprocess.Popen[bytes] | None = None

    def carry_on(self) -> bool:
        """Start the command unless it runs; return whether the run is finished."""
        code = None if self.process is None else self.process.poll()
        if code == ExitCode.DONE:
            return True
        if self.process is None or code is not None:
            assert code in (None, ExitCode.ERROR, ExitCode.STOPPED), f"{code}\n{self._log.read_text()[-3000:]}"
            environment = {**harness.environment(), "CREPE_DIST_FAULT": str(self.plan)}
            with self._log.open("ab") as log:
                self.process = subprocess.Popen(
                    self._command, cwd=self._folder, env=environment, stdout=log, stderr=log
                )
        return False

    def step(self) -> int:
        """Return the last step that was recorded."""
        metrics = self.run_dir / "metrics.jsonl"
        lines = metrics.read_text().splitlines() if metrics.exists() else []
        steps = [json.loads(line) for line in lines if line.endswith("}") and '"event": "step"' in line]
        return int(steps[-1]["step"]) if steps else 0

    def suffer(self, kind: str, rank: int, phase: str, generator: random.Random) -> None:
        """Inflict a fault, and wait for a step that was not done before."""
        once = self._folder / f"once-{generator.random()}"
        step = self.step() + generator.randint(2, 12)
        strike = {"kind": STRIKES[kind], "rank": rank, "phase": phase, "step": step, "once": str(once)}
        write_json(self.plan, {**strike, "pace": PACE})
        harness.wait_for(lambda: self.carry_on() or once.exists(), LONGEST)
        assert once.exists(), "it finished before the last fault"
        struck = self.step()
        if kind == "cut file":
            newest = max((self.run_dir / "state").glob("step_*"))
            file = generator.choice(sorted(newest.iterdir()))
            os.truncate(file, generator.randrange(file.stat().st_size))
        elif kind == "full disk":
            filling = fill(self.run_dir.parent)
            time.sleep(1.5)
            filling.unlink()
        harness.wait_for(lambda: self.carry_on() or self.step() > struck, LONGEST)


@pytest.mark.timeout(7200)
@pytest.mark.parametrize(("processes", "faults"), [(2, 4), (1, 25), (3, 25), (4, 25)])
def test_it_ends_in_the_bits_of_an_unbroken_run(data, tmp_path, disk, processes, faults):
    generator = random.Random(processes)
    settings = (f"--epochs={EPOCHS * (faults + 1)}", "--safety.watchdog-s=4")
    unbroken = harness.start(harness.command(tmp_path / "unbroken", data, processes, *settings), tmp_path)
    code, printed = harness.finish(unbroken, 1800)
    assert code == 0, printed
    restarts = ("--max-restarts", "1000")
    soak = Soak(disk / "run", supervise(disk / "run", data, processes, *settings, flags=restarts), tmp_path)
    try:
        for _ in range(faults):
            kind = generator.choice(sorted(STRIKES))
            phase = "train" if kind == "NaN" else generator.choice(("train", "evaluate", "save"))
            soak.suffer(kind, 0 if phase == "save" else generator.randrange(processes), phase, generator)
        write_json(soak.plan, {"kind": "none"})
        harness.wait_for(soak.carry_on, 1800)
    finally:
        if soak.process is not None and soak.process.poll() is None:
            soak.process.terminate()
            soak.process.wait(60)
    harness.assert_same(disk / "run", tmp_path / "unbroken")
