"""Meaning of workers' exit codes."""

from __future__ import annotations

import enum
import signal

from crepe_dist.errors import ExitCode

USAGE = 2  # argparse's code for a mistake in the flags
KNOWN = {
    ExitCode.ERROR: "an error that a user can fix",
    USAGE: "a mistake in the flags",
    ExitCode.PEER_GONE: "another process ended",
    ExitCode.FAILURE: "unexpected failure",
    ExitCode.STOPPED: "stopped after saving",
    ExitCode.HUNG: "no progress",
    ExitCode.INTERRUPTED: "interrupted",
}


class Meaning(enum.Enum):
    """Meaning of a worker's exit code.

    Attributes:
        MISTAKE: an error that a user can fix; a restart would fail in the same way.
        PREEMPTED: the worker was asked to stop and has saved.
        FAILED: any other failure; a restart may succeed.
    """

    DONE = enum.auto()
    MISTAKE = enum.auto()
    PREEMPTED = enum.auto()
    INTERRUPTED = enum.auto()
    FAILED = enum.auto()


def meaning(code: int | None) -> Meaning:
    """Classify an exit code, negative for a signal; ``None`` if it is unknown because the host is gone."""
    if code == ExitCode.DONE:
        return Meaning.DONE
    if code in (ExitCode.ERROR, USAGE):
        return Meaning.MISTAKE
    if code in (ExitCode.STOPPED, -signal.SIGTERM):  # the latter before it could handle signals
        return Meaning.PREEMPTED
    return Meaning.INTERRUPTED if code == ExitCode.INTERRUPTED else Meaning.FAILED


def own_code(code: int | None) -> int:
    """Map a worker's exit code to that of the command."""
    if code is None:
        return int(ExitCode.FAILURE)
    return code if code >= 0 else 128 - code


def in_words(code: int | None, hang: bool) -> str:
    """Describe a worker's end as the rest of a sentence; ``hang``: it may have been killed to end a hang."""
    if code is None:
        return "was lost with its node"
    if code < 0:
        guess = ", to end a hang" if hang else "; perhaps the machine ran out of memory (see dmesg)"
        return f"was killed by signal {-code} ({signal.strsignal(-code)})" + guess * (code == -signal.SIGKILL)
    return f"ended with code {code}" + (f" ({KNOWN[code]})" if code in KNOWN else "")
