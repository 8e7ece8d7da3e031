"""Errors with messages for the user, and the exit codes and signals of all commands."""

import enum
import errno
import signal
import unicodedata

# Signals that request a command to stop. SIGUSR2 has the same effect as SIGTERM: mpirun forwards it without killing the
# processes a second later, and Grid Engine and LSF send it before they kill a job. SIGHUP is sent when the terminal is
# closed.
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2, signal.SIGHUP)


class ExitCode(enum.IntEnum):
    """Exit codes of all commands. Codes from 64 to 78 are taken from ``sysexits.h``.

    Attributes:
        ERROR: Error that the user must fix. The same command would fail again.
        PEER_GONE: Another process of the group ended. The exit code of that process shows the cause.
        FAILURE: Unexpected error. The same command may succeed.
        STOPPED: Stopped on request (SIGTERM). If a run had started, its state has been saved, and the same command
            resumes the run.
        HUNG: Stopped by the watchdog because there was no progress.
        HOST_ERROR: Error on some hosts only, which the user must fix. The same command may succeed on other hosts.
    """

    DONE = 0
    ERROR = 1
    PEER_GONE = 69
    FAILURE = 70
    STOPPED = 75
    HUNG = 76
    HOST_ERROR = 78
    INTERRUPTED = 130


class UserError(Exception):
    """Error that the user can fix. Commands print it without a traceback.

    Args:
        what: Summary of the failure in one sentence.
        why: Cause. Empty if ``what`` makes the cause obvious.
        remedy: Instruction to the user, if possible a command to paste.
        on_all_ranks: Every rank raises this error at the same point. Then only one rank prints it.
        code: Exit code of the command. FAILURE if the same command may succeed.
    """

    def __init__(
        self,
        what: str,
        why: str = "",
        remedy: str = "",
        *,
        on_all_ranks: bool = False,
        code: int = ExitCode.ERROR,
    ) -> None:
        super().__init__(what)
        self.what = what
        self.why = why
        self.remedy = remedy
        self.on_all_ranks = on_all_ranks
        self.code = code

    def __str__(self) -> str:
        return self.format_lines("error")

    def format_lines(self, kind: str) -> str:
        """Return the lines to print: what happened, why, and what to do. The first line starts with ``kind``."""
        lines = [f"{kind}: {self.what}"]
        if self.why:
            lines.append(f"  why: {self.why}")
        if self.remedy:
            lines.append(f"  do:  {self.remedy}")
        # File names and file contents may contain control characters, which a terminal would interpret.
        return "\n".join(map(escape_to_one_line, lines))


def escape_character(character: str) -> str:
    r"""Escape a character (as in ``\n`` or ``\u202e``) if a terminal or a browser would interpret it."""
    if character.isprintable() or unicodedata.category(character) == "Zs":
        return character
    return character.encode("unicode_escape").decode("ascii")


def escape_to_one_line(text: str) -> str:
    """Escape all control characters of untrusted text, including line breaks and tabs."""
    return text if text.isprintable() else "".join(map(escape_character, text))


def escape_controls(text: str) -> str:
    """Escape the control characters of untrusted text for a terminal. Line breaks and tabs are not escaped."""
    if text.isprintable():
        return text
    return "".join(character if character in "\n\t" else escape_character(character) for character in text)


class PeerLostError(Exception):
    """Error that a rank raises if another process of the group has ended or did not join."""


def is_memory_error(error: BaseException) -> bool:
    """Return whether an exception is an out-of-memory error of Python or of the operating system."""
    return isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM)
