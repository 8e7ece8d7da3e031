"""The first moments of a process, before the imports that take a third of a second: Python's version, and signals."""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType

from crepe_dist.errors import ExitCode, UserError

PYTHON = (3, 9)  # the lowest version
COMMANDS = ("-m", "crepe")  # sys.argv[0] of `python -m`, while it imports the package, and of the console command

# SIGUSR2 means the same as SIGTERM: mpirun forwards it, but kills a second after SIGTERM; Grid Engine and LSF send it
# before they kill. SIGHUP: the terminal is closed.
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2, signal.SIGHUP)


def check_python() -> None:
    """Refuse a Python that is too old, before an import fails.

    Raises:
        SystemExit: a command was started, which shows the message without a traceback.
        ImportError: the package was imported.
    """
    if sys.version_info[:2] >= PYTHON:
        return
    message = str(
        UserError(
            f"Python {'.'.join(map(str, sys.version_info[:3]))} is too old",
            "crepe_dist needs Python 3.9 or later, and to train in several processes 3.9, 3.10 or 3.11",
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
