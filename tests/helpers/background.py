"""Commands and servers that run beside a test."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path


class Command:
    """Command whose output goes to a file."""

    def __init__(self, words: Sequence[str], folder: Path, environment: Mapping[str, str]) -> None:
        self._log = folder / "log"
        with self._log.open("wb") as stream:
            self.process = subprocess.Popen(words, cwd=folder, env=environment, stdout=stream, stderr=subprocess.STDOUT)

    def wait_for(self, text: str) -> None:
        due = time.monotonic() + 300
        while text not in self._log.read_text():
            assert time.monotonic() < due, self._log.read_text()
            time.sleep(0.02)

    def finish(self, code: int = 0) -> str:
        """Wait for the end, check the exit code, and return the output."""
        assert self.process.wait(600) == code, self._log.read_text()
        printed = self._log.read_text()
        assert "Traceback" not in printed
        return printed


def install(folder: Path, *packages: str) -> str:
    """Install packages into a folder, and return a ``PYTHONPATH`` with these packages and this one."""
    words = ["uv", "pip", "install", "-q", "--no-config", "-p", sys.executable, "--target", str(folder), *packages]
    subprocess.run(words, check=True)
    return f"{folder}:{Path(__file__).parents[2]}"


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
        return port


def serve(words: Sequence[str], port: int, environment: Mapping[str, str], cwd: Path) -> subprocess.Popen[bytes]:
    """Start a server of its own session, and wait until it listens."""
    with (cwd / "server.log").open("wb") as log:
        server = subprocess.Popen(words, env=environment, cwd=cwd, start_new_session=True, stdout=log, stderr=log)
    due = time.monotonic() + 120
    while True:
        with socket.socket() as client:
            if client.connect_ex(("127.0.0.1", port)) == 0:
                return server
        assert time.monotonic() < due
        time.sleep(0.1)


def end(server: subprocess.Popen[bytes]) -> None:
    """Kill a server and its processes."""
    os.killpg(server.pid, signal.SIGKILL)
    server.wait()
