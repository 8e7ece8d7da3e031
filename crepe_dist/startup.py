"""Signals in the first moments of a process, before the imports that take a third of a second."""

from __future__ import annotations

import os
import signal
from types import FrameType

from crepe_dist.errors import ExitCode

# SIGUSR2 means the same as SIGTERM: mpirun forwards it, but kills a second after SIGTERM; Grid Engine and LSF send it
# before they kill.
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)


def end_on_signals() -> None:
    """End this process with a message and the code of a stopped command, until the command handles signals itself."""
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _end)


def _end(number: int, frame: FrameType | None) -> None:
    name = signal.Signals(number).name
    os.write(2, f"stopped: {name}, before the command began\n".encode())
    os._exit(ExitCode.INTERRUPTED if number == signal.SIGINT else ExitCode.STOPPED)
