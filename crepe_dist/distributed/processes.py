"""Processes of this machine that are not our children, identified by pid and start time; the end of our children."""

from __future__ import annotations

import ctypes
import signal
from pathlib import Path

PR_SET_PDEATHSIG = 1
libc = ctypes.CDLL(None, use_errno=True)


def terminate_with_parent() -> None:
    """Ask the kernel to send SIGTERM when the thread that starts this process ends; runs in the new process."""
    libc.prctl(PR_SET_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0)


def start_time(pid: int) -> int | None:
    """Return the start of a process in clock ticks since boot; ``None`` if it does not run."""
    fields = _status(pid)
    return None if not fields or fields[0] in (b"Z", b"X") else int(fields[19])


def is_stopped(pid: int, began: int) -> bool:
    """Return whether the process that started then is suspended, by SIGSTOP or a debugger."""
    fields = _status(pid)
    return bool(fields) and fields[0] in (b"T", b"t") and int(fields[19]) == began


def _status(pid: int) -> list[bytes]:
    """Return the fields of /proc/<pid>/stat from the state on; empty if there is no such process."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return []
    # The name in brackets may itself contain brackets and blanks; the state follows it.
    return stat[stat.rindex(b")") + 2 :].split()
