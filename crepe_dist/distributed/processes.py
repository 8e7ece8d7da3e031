"""Processes of this machine that are not our children, known by pid and start time so that no other one is hit."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path


def start_time(pid: int) -> int | None:
    """Clock ticks from the machine's start to that of the process; ``None`` if it does not run (any more)."""
    fields = _status(pid)
    return None if not fields or fields[0] in (b"Z", b"X") else int(fields[19])


def is_stopped(pid: int, began: int) -> bool:
    """Whether it stands still by a signal (SIGSTOP) or a debugger, and is still the one that started then."""
    fields = _status(pid)
    return bool(fields) and fields[0] in (b"T", b"t") and int(fields[19]) == began


def _status(pid: int) -> list[bytes]:
    """Of /proc/<pid>/stat, from the process's state on; empty if there is no such process."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return []
    # The name stands in brackets and may itself contain brackets and blanks; the state comes next.
    return stat[stat.rindex(b")") + 2 :].split()


def runs(pid: int, began: int) -> bool:
    return start_time(pid) == began


def kill(pid: int, began: int) -> None:
    """SIGKILL to the process and its process group, if it is still the one that started then."""
    if not runs(pid, began):
        return
    with contextlib.suppress(OSError):
        if os.getpgid(pid) == pid:
            os.killpg(pid, signal.SIGKILL)
        os.kill(pid, signal.SIGKILL)
