#!/usr/bin/env python3
"""HEALTHCHECK of the images: exit code 0 if the container's command runs and, for the service, answers.

A hanging training run is ended by its own watchdog, so a running process makes progress.
"""

import sys
import urllib.request
from pathlib import Path

PROCESSES = Path("/proc")
STOPPED = "TtZX"  # states in /proc/<pid>/stat: stopped by a signal or a debugger, or dead
SECONDS = 5


def command(arguments: list[str]) -> str:
    """Return the package's command that a process runs: `crepe serve`, `-m crepe_dist serve`, `-m crepe_dist.train`."""
    for argument, following in zip(arguments, [*arguments[1:], ""]):
        if argument.startswith("crepe_dist."):
            return argument.partition(".")[2]
        if Path(argument).name in ("crepe", "crepe_dist"):
            return following
    return ""


def commands() -> list[tuple[list[str], str]]:
    """Return (arguments, state) of each process that runs a command of the package."""
    found = []
    for folder in PROCESSES.glob("[0-9]*"):
        try:
            arguments = (folder / "cmdline").read_bytes().decode("utf-8", "replace").split("\0")
            state = (folder / "stat").read_text().rpartition(")")[2].split()[0]
        except OSError:  # the process has ended
            continue
        if command(arguments):
            found.append((arguments, state))
    return found


def port(arguments: list[str]) -> int:
    """Return the port of a service from its arguments."""
    for position, argument in enumerate(arguments):
        name, _, value = argument.partition("=")
        if name == "--port":
            return int(value or arguments[position + 1])
    return 8080


def complaint() -> str:
    """Describe the problem; empty if there is none."""
    found = commands()
    if not found:
        return "no command of crepe_dist runs"
    for arguments, state in found:
        if state in STOPPED:
            return f"a process is stopped or dead (state {state})"
        if command(arguments) == "serve":
            address = f"http://127.0.0.1:{port(arguments)}/healthz"
            try:
                urllib.request.urlopen(address, timeout=SECONDS).close()
            except OSError as error:
                return f"{address}: {error}"
    return ""


if __name__ == "__main__":
    sys.exit(complaint() or 0)  # sys.exit('') would also exit with 1
