"""The first moments of a process, before the imports that take a third of a second: Python's version, and signals."""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType

from crepe_dist.errors import ExitCode, UserError

PYTHONS = (3, 9), (3, 11)  # the lowest and the highest version
COMMANDS = ("-m", "crepe")  # sys.argv[0] of `python -m`, while it imports the package, and of the console command

# SIGUSR2 means the same as SIGTERM: mpirun forwards it, but kills a second after SIGTERM; Grid Engine and LSF send it
# before they kill.
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)


def check_python() -> None:
    """Refuse a Python that the pinned packages do not support, before an import of one of them fails.

    Raises:
        SystemExit: a command was started, which shows the message without a traceback.
        ImportError: the package was imported.
    """
    low, high = PYTHONS
    if low <= sys.version_info[:2] <= high:
        return
    message = str(
        UserError(
            f"Python {'.'.join(map(str, sys.version_info[:3]))} is not one of 3.9, 3.10 and 3.11",
            "MXNet 1.9.1 and the pinned versions of the other packages need one of them",
            "in a clone of the repository: uv run -p 3.11 crepe train (or another command); uv downloads it if needed",
        )
    )
    if os.path.basename(sys.argv[0]) in COMMANDS:
        raise SystemExit(message)
    raise ImportError(message)


def end_on_signals() -> None:
    """End this process with a message and the code of a stopped command, until the command handles signals itself."""
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _end)


def _end(number: int, frame: FrameType | None) -> None:
    name = signal.Signals(number).name
    os.write(2, f"stopped: {name}, before the command began\n".encode())
    os._exit(ExitCode.INTERRUPTED if number == signal.SIGINT else ExitCode.STOPPED)
