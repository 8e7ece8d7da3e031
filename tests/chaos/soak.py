"""Random faults in sequence, on runs of one to four processes: `python -m tests.chaos.soak --faults 100`.

Prints a table in Markdown. Every run must end in the same bits as an unbroken one.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from crepe_dist.data.alphabet import Encoding
from crepe_dist.errors import ExitCode
from crepe_dist.files import write_json
from crepe_dist.preparing.preparation import prepare
from crepe_dist.preparing.selection import SplitOptions
from crepe_dist.preparing.sources import find_sources
from tests.chaos import harness
from tests.chaos.test_state_on_disk import fill
from tests.chaos.test_supervised import supervise
from tests.conftest import FEATURE_LEN, records, write_csv

PHASES = ("train", "evaluate", "save")
# What is done beside the strike in a worker: the kind that the worker knows.
STRIKES = {
    "SIGKILL": "SIGKILL",
    "SIGSTOP": "SIGSTOP",
    "SIGTERM": "SIGTERM",
    "cut file": "SIGKILL",
    "full disk": "mark",
    "NaN": "nan",
    "bad row": "SIGKILL",
}
DISK = "3m"
STEPS_BETWEEN = (2, 12)
PACE = 0.03  # seconds before each step, so that the run does not end before the faults do
EPOCHS = 4  # a fault
# Seconds from a fault to the first step after it, at most; where the machine is slow, so many times its first start.
LONGEST = 90.0
STARTS = 8


@dataclass(frozen=True)
class Recovery:
    """From one fault.

    Attributes:
        seconds: until a step was done that had not been done before.
        lost: steps that were done again.
    """

    kind: str
    phase: str
    processes: int
    seconds: float
    lost: int


class Soak:
    """One run under many faults.

    Args:
        folder: an empty one; the run's own part of it is a small file system.
        epochs: enough for all the faults.
    """

    def __init__(self, folder: Path, data: Path, processes: int, epochs: int) -> None:
        self.folder = folder
        self.data = data
        self.processes = processes
        self.more = (f"--training.epochs={epochs}", "--safety.watchdog_s=4", "--checkpoint.keep_last=1")
        self.plan = folder / "plan.json"
        write_json(self.plan, {"kind": "none", "pace": PACE})
        self.disk = folder / "disk"
        self.disk.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK}", "none", str(self.disk)], check=True)
        self.run_dir = self.disk / "run"
        self.process: subprocess.Popen[bytes] | None = None
        self.log = folder / "log.txt"
        self.longest = LONGEST
        self.whole = 0.0  # seconds of the unbroken run

    def close(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            self.process.wait(60)
        subprocess.run(["umount", "-l", str(self.disk)], check=True)

    def unbroken(self) -> Path:
        run_dir = self.folder / "unbroken"
        # Long, because more processes than cores take seconds an epoch.
        command = harness.command(run_dir, self.data, self.processes, *self.more)
        began = time.monotonic()
        code, printed = harness.finish(harness.start(command, self.folder), 1800)
        assert code == 0, printed
        self.whole = time.monotonic() - began
        return run_dir

    def begin(self) -> None:
        """Starts it, and measures how long a start takes."""
        began = time.monotonic()
        self.go_on()
        harness.wait_for(self.step, 300)
        self.longest = max(LONGEST, STARTS * (time.monotonic() - began))

    def finish(self) -> None:
        """Lets it run to its end, without faults."""
        assert not (self.run_dir / "result.json").exists(), "it finished before the last fault"
        write_json(self.plan, {"kind": "none"})
        due = time.monotonic() + max(300, 3 * self.whole)
        while self.carry_on() is None:
            assert time.monotonic() < due, f"it does not finish\n{self.log.read_text()[-3000:]}"
            time.sleep(0.05)

    def carry_on(self) -> int | None:
        """Start the command again if a fault has ended it; 0 once the run is finished.

        A fault before the last one may do that: a checkpoint that finds no room ends the run long after the strike.
        """
        assert self.process is not None
        code = self.process.poll()
        if code is not None and code != 0:
            assert code in (ExitCode.ERROR, ExitCode.STOPPED), f"{code}\n{self.log.read_text()[-3000:]}"
            self.go_on()
            return None
        return code

    def go_on(self) -> None:
        """Starts the command (again) unless it runs."""
        if self.process is None or self.process.poll() is not None:
            arguments = supervise(self.run_dir, self.data, self.processes, *self.more, flags=("--max-restarts", "1000"))
            environment = {**harness.environment(), "CREPE_DIST_FAULT": str(self.plan)}
            with self.log.open("ab") as log:
                self.process = subprocess.Popen(
                    arguments, cwd=self.folder, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
                )

    def step(self) -> int:
        """The last one that was recorded."""
        try:
            lines = (self.run_dir / "metrics.jsonl").read_text().splitlines()
        except OSError:
            return 0
        for line in reversed(lines):
            try:
                record = json.loads(line)
            except ValueError:
                continue
            if record["event"] == "step":
                return int(record["step"])
        return 0

    def suffer(self, kind: str, phase: str, generator: random.Random, number: int) -> Recovery:
        once = self.folder / f"once-{number}"
        plan = {
            "kind": STRIKES[kind],
            "rank": 0 if phase == "save" else generator.randrange(self.processes),
            "phase": phase,
            "step": self.step() + generator.randint(*STEPS_BETWEEN),
            "once": str(once),
            "pace": PACE,
        }
        write_json(self.plan, plan)
        self.go_on()
        harness.wait_for(lambda: once.exists() or self.carry_on() is not None, self.longest)
        assert once.exists(), "it finished before the last fault"
        began = time.monotonic()
        struck = max(self.read(once), self.step())
        if kind == "cut file":
            self.cut(generator)
        elif kind == "full disk":
            filling = fill(self.disk)
            time.sleep(1.5)
            filling.unlink()
        elif kind == "bad row":
            self.spoil_a_row(generator)
        self.wait_until_it_trains(struck, began)
        seconds = time.monotonic() - began
        resumes = [each["step"] for each in records(self.run_dir, "resume")]
        new = resumes[self.resumes :]
        self.resumes = len(resumes)
        return Recovery(kind, phase, self.processes, seconds, max(0, struck - new[-1]) if new else 0)

    resumes = 0

    @staticmethod
    def read(once: Path) -> int:
        harness.wait_for(lambda: once.read_text().endswith("}"))
        return int(json.loads(once.read_text())["step"])

    def wait_until_it_trains(self, struck: int, began: float) -> None:
        while self.step() <= struck and self.carry_on() is None:
            assert time.monotonic() - began < self.longest, f"no step after {struck}\n{self.log.read_text()[-3000:]}"
            time.sleep(0.02)

    def cut(self, generator: random.Random) -> None:
        """Some file of the newest state is cut before anybody reads it."""
        newest = max((self.run_dir / "state").glob("step_*"), default=None)
        if newest is not None:
            file = generator.choice(sorted(newest.iterdir()))
            os.truncate(file, generator.randrange(file.stat().st_size))

    def spoil_a_row(self, generator: random.Random) -> None:
        """Alter one byte of the data until the run has refused it."""
        file = self.data / "train.codes-00000.npy"
        place = generator.randrange(200, file.stat().st_size)
        with file.open("r+b") as stream:
            stream.seek(place)
            (byte,) = stream.read(1)
            stream.seek(place)
            stream.write(bytes([byte ^ 1]))
            stream.flush()
            assert self.process is not None
            code = self.process.wait(self.longest)
            assert code == ExitCode.ERROR, self.log.read_text()[-3000:]
            assert "was altered since it was prepared" in self.log.read_text()
            stream.seek(place)
            stream.write(bytes([byte]))
        self.go_on()


def faults(count: int, generator: random.Random) -> list[tuple[str, str]]:
    """Every kind in every phase in turn, shuffled."""
    kinds = [(kind, phase) for kind in STRIKES for phase in PHASES if kind != "NaN" or phase == "train"]
    chosen = [kinds[number % len(kinds)] for number in range(count)]
    generator.shuffle(chosen)
    return chosen


def run(folder: Path, data: Path, processes: int, chosen: list[tuple[str, str]], seed: int) -> list[Recovery]:
    """All faults on one run; it must end in the bits of an unbroken one."""
    generator = random.Random(seed)
    soak = Soak(folder, data, processes, EPOCHS * (len(chosen) + 1))
    try:
        unbroken = soak.unbroken()
        soak.begin()
        recoveries = []
        for number, (kind, phase) in enumerate(chosen):
            recoveries.append(soak.suffer(kind, phase, generator, number))
            print(recoveries[-1], file=sys.stderr, flush=True)
        soak.finish()
        harness.assert_same(soak.run_dir, unbroken)
    finally:
        soak.close()
    return recoveries


def table(recoveries: list[Recovery]) -> str:
    rows = defaultdict(list)
    for each in recoveries:
        rows[each.kind, each.phase].append(each)
    lines = [
        "| fault | while | faults | recoveries | steps done again, mean (most) | seconds to recover, median (most) |",
        "|---|---|---|---|---|---|",
    ]
    for (kind, phase), group in sorted(rows.items()):
        lost, seconds = [each.lost for each in group], [each.seconds for each in group]
        lines.append(
            f"| {kind} | {phase} | {len(group)} | {len(group)} | {statistics.mean(lost):.1f} ({max(lost)}) "
            f"| {statistics.median(seconds):.1f} ({max(seconds):.1f}) |"
        )
    return "\n".join(lines)


def make_data(folder: Path) -> Path:
    folder.mkdir()
    write_csv(folder / "train.csv", 301, seed=1)
    write_csv(folder / "test.csv", 97, seed=2)
    (folder / "classes.txt").write_text("first\nsecond\nthird\n")
    prepare(find_sources([str(folder)]), folder / "prepared", Encoding(feature_len=FEATURE_LEN), SplitOptions())
    return folder / "prepared"


def main() -> None:
    flags = argparse.ArgumentParser(description="random faults on runs of one to four processes")
    flags.add_argument("--faults", type=int, default=100)
    flags.add_argument("--seed", type=int, default=0)
    given = flags.parse_args()
    chosen = faults(given.faults, random.Random(given.seed))
    recoveries = []
    for processes in (1, 2, 3, 4):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            share = chosen[processes - 1 :: 4]
            recoveries += run(folder, make_data(folder / "data"), processes, share, given.seed + processes)
            print(f"{processes} processes: {len(share)} faults, ends in the bits of an unbroken run", file=sys.stderr)
    print(table(recoveries))


if __name__ == "__main__":
    main()
