"""What the end of a worker means, and how often and how soon to start again."""

from __future__ import annotations

import enum
import signal

from crepe_dist.errors import ExitCode

LONGEST_BACK_OFF = 60.0  # seconds
USAGE = 2  # argparse's code for a mistake in the flags

Position = tuple[int, int]  # epoch, step; of a run that goes on it only grows
NOWHERE: Position = (-1, -1)


class Meaning(enum.Enum):
    """Of an exit code.

    Attributes:
        DONE: finished.
        MISTAKE: a user's; another try would end in the same way.
        PREEMPTED: it was asked to stop, and has saved.
        INTERRUPTED: by Ctrl-C.
        FAILED: another try may succeed.
    """

    DONE = enum.auto()
    MISTAKE = enum.auto()
    PREEMPTED = enum.auto()
    INTERRUPTED = enum.auto()
    FAILED = enum.auto()


def meaning(code: int | None) -> Meaning:
    """Of an exit code, negative for a signal; ``None``: unknown, because the host is gone."""
    if code == ExitCode.DONE:
        return Meaning.DONE
    if code in (ExitCode.ERROR, USAGE):
        return Meaning.MISTAKE
    if code == ExitCode.STOPPED:
        return Meaning.PREEMPTED
    return Meaning.INTERRUPTED if code == ExitCode.INTERRUPTED else Meaning.FAILED


def own_code(code: int | None) -> int:
    """The exit code of the supervisor for that of a worker."""
    if code is None:
        return int(ExitCode.FAILURE)
    return code if code >= 0 else 128 - code


def in_words(code: int | None, ours: bool = False) -> str:
    """How a worker ended, as the rest of a sentence; ``ours``: by us, or by another worker that saw no progress."""
    if code is None:
        return "was lost with its host's agent"
    if code < 0:
        try:
            name = signal.Signals(-code).name
        except ValueError:
            name = "unknown"
        guess = ""
        if code == -signal.SIGKILL:
            guess = ": the end of a hang" if ours else "; perhaps the kernel ran out of memory (dmesg)"
        return f"was ended by signal {-code} ({name}){guess}"
    known = {
        ExitCode.ERROR: "a mistake that a user can mend",
        USAGE: "a mistake in the flags",
        ExitCode.PEER_GONE: "another process ended",
        ExitCode.FAILURE: "unexpected failure",
        ExitCode.STOPPED: "asked to stop, nothing is lost",
        ExitCode.HUNG: "no progress",
        ExitCode.INTERRUPTED: "interrupted",
    }
    return f"ended with code {code}" + (f" ({known[code]})" if code in known else "")


def after(delay: float) -> str:
    """The delay in seconds, as the rest of a sentence; nothing if there is none."""
    return f" after {delay:g} s" if delay else ""


class BackOff:
    """Seconds before the next start: 0 after progress, then 1, 2, 4 … while there is none."""

    def __init__(self) -> None:
        self._reached: Position | None = None
        self._without = 0

    def next(self, position: Position) -> float:
        """Args: position: the farthest that any worker has come so far."""
        if self._reached is None or position > self._reached:
            self._without = 0
        else:
            self._without += 1
        self._reached = position
        # The exponent is bounded: a float has no room for 2 to the power of thousands of restarts.
        return min(LONGEST_BACK_OFF, 2.0 ** min(self._without - 1, 10)) if self._without else 0.0


class Restarts:
    """Those that failures may use up.

    Args:
        limit: how many.
    """

    def __init__(self, limit: int) -> None:
        self.left = limit
        self._back_off = BackOff()

    def take(self, position: Position) -> float | None:
        """Seconds to wait before the next start; ``None`` if none is left."""
        if self.left <= 0:
            return None
        self.left -= 1
        return self._back_off.next(position)
