"""Meanings of the exit codes of the ranks."""

import enum
import signal

from crepe_dist.errors import ExitCode
from crepe_dist.formatting import describe_exit_code

USAGE_ERROR = 2  # Exit code of argparse for a mistake in the flags.
# Meanings of exit codes, for messages.
EXIT_MEANINGS = {
    ExitCode.ERROR: "an error that a user can fix",
    USAGE_ERROR: "a mistake in the flags",
    ExitCode.PEER_GONE: "another process ended",
    ExitCode.FAILURE: "a failure that may pass",
    ExitCode.STOPPED: "stopped on request",
    ExitCode.HUNG: "no progress",
    ExitCode.HOST_ERROR: "an error on some hosts only",
    ExitCode.INTERRUPTED: "interrupted",
}


class ExitKind(enum.Enum):
    """Meaning of a worker's exit code.

    Attributes:
        DONE: The worker has finished training.
        MISTAKE: The worker has failed with an error that the user must fix. After a restart on the same hosts, it would
            fail again.
        PREEMPTED: The worker was asked to stop. If its run had started, it has saved its state.
        INTERRUPTED: The user has pressed Ctrl-C.
        FAILED: The worker has failed in another way. A restart may succeed.
    """

    DONE = enum.auto()
    MISTAKE = enum.auto()
    PREEMPTED = enum.auto()
    INTERRUPTED = enum.auto()
    FAILED = enum.auto()


def classify_exit(code: int | None) -> ExitKind:
    """Classify an exit code.

    Args:
        code: Exit code. It is negative if a signal has ended the process, and ``None`` if the process was lost.
    """
    if code == ExitCode.DONE:
        return ExitKind.DONE
    if code in (ExitCode.ERROR, ExitCode.HOST_ERROR, USAGE_ERROR):
        return ExitKind.MISTAKE
    # A worker that gets SIGTERM before it has installed its signal handlers exits with -SIGTERM.
    if code in (ExitCode.STOPPED, -signal.SIGTERM):
        return ExitKind.PREEMPTED
    return ExitKind.INTERRUPTED if code == ExitCode.INTERRUPTED else ExitKind.FAILED


def command_exit_code(code: int | None) -> int:
    """Map the exit code of a worker to the exit code of the command."""
    return int(ExitCode.FAILURE) if code is None else code if code >= 0 else 128 - code


def describe_exit(code: int | None) -> str:
    """Describe an exit code, as in ``classify_exit``, as the predicate of a sentence."""
    if code is None:
        return "was lost with its node"
    return describe_exit_code(code) + (f" ({EXIT_MEANINGS[code]})" if code in EXIT_MEANINGS else "")
