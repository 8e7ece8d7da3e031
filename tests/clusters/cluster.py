"""Ray cluster on this machine in its own process, and commands that train on it."""

import contextlib
import os
import subprocess
from pathlib import Path

from tests.chaos import harness
from tests.conftest import QUICK

SETTINGS = [*QUICK, "--batch-size=25", "--epochs=30", "--state.save-steps=4"]
RAY_NODES = Path(__file__).with_name("ray_nodes.py")


class Cluster:
    """Ray cluster on this machine, with a folder for training.

    Args:
        programs: ``bin`` of the environment.
        folder: Empty folder.
    """

    def __init__(self, programs: Path, data: Path, folder: Path) -> None:
        self._programs, self._data, self._folder = programs, data, folder
        self.run_dir = folder / "run"
        self._holder, self.address = self._start()
        self._trainings: list[subprocess.Popen[str]] = []

    def _start(self) -> tuple[subprocess.Popen[str], str]:
        """Start the cluster. Repeat the start if Ray's time limit was too short for a busy machine."""
        while True:
            holder = subprocess.Popen(
                [self._programs / "python", RAY_NODES],
                cwd=self._folder,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=(self._folder / "cluster.txt").open("w"),
                text=True,
            )
            if address := _answer(holder):
                return holder, address
            said = (self._folder / "cluster.txt").read_text()
            assert "timed out" in said.lower(), said  # Ray waits 30 s for a node, which no setting changes.

    def remove_node(self) -> None:
        assert self._holder.stdin is not None
        print("remove", file=self._holder.stdin, flush=True)
        assert _answer(self._holder) == "done"

    def train(self, *flags: str) -> subprocess.Popen[str]:
        """Start ``crepe train --on ray``. The output is written to the file ``printed.txt``."""
        arguments = ["--on", "ray", "--processes", "2", "--data", str(self._data)]
        process = subprocess.Popen(
            [self._programs / "crepe", "train", *arguments, "--run-dir", str(self.run_dir), *SETTINGS, *flags],
            cwd=self._folder,
            env={**os.environ, "RAY_ADDRESS": self.address},
            stdin=subprocess.DEVNULL,
            stdout=(self._folder / "printed.txt").open("w"),
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._trainings.append(process)
        return process

    @property
    def printed(self) -> str:
        return (self._folder / "printed.txt").read_text()

    def wait_for_saved_state(self) -> None:
        harness.wait_for(lambda: harness.has_saved(self.run_dir) or self._trainings[-1].poll() is not None)
        assert self._trainings[-1].poll() is None, self.printed

    def ranks(self) -> dict[int, int]:
        """Map the rank of each training process to its process id."""
        found = {}
        for process in harness.processes(f"--run-dir={self.run_dir}"):
            with contextlib.suppress(OSError, KeyError):
                lines = Path(f"/proc/{process}/environ").read_bytes().split(b"\0")
                found[int(dict(line.partition(b"=")[::2] for line in lines)[b"RANK"])] = process
        return found

    def end(self) -> None:
        for training in self._trainings:
            if training.poll() is None:
                training.kill()
                training.wait()
        try:
            self._holder.communicate(timeout=30)
        except subprocess.TimeoutExpired:
            self._holder.kill()
            self._holder.communicate()
        self.wait_for_no_rank()

    def wait_for_no_rank(self) -> None:
        harness.wait_for(lambda: not self.ranks())


def _answer(holder: subprocess.Popen[str]) -> str:
    """Return the next line of output, or an empty text if the process has ended."""
    assert holder.stdout is not None
    return next((line[2:].strip() for line in holder.stdout if line.startswith("> ")), "")


def finish(process: subprocess.Popen[str], cluster: Cluster) -> str:
    """Wait for a training that must succeed, and return its output."""
    assert process.wait() == 0, cluster.printed
    return cluster.printed
