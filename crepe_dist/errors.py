"""Errors with messages for the user, and the exit codes and signals of all commands."""

from __future__ import annotations

import enum
import errno
import signal
import unicodedata

# Signals that ask a command to stop. SIGUSR2 means the same as SIGTERM: mpirun forwards it without killing the
# processes a second later, and Grid Engine and LSF send it before they kill. SIGHUP: the terminal was closed.
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2, signal.SIGHUP)


class ExitCode(enum.IntEnum):
    """Exit codes of all commands. Codes from 64 to 78 follow ``sysexits.h`` where it has a fitting code.

    Attributes:
        ERROR: error that the user must fix. The same command would fail again.
        PEER_GONE: another process of the group ended. The exit code of that process gives the cause.
        FAILURE: unexpected error. The same command may succeed.
        STOPPED: stopped on request (SIGTERM). A run that had started has saved its state. The same command
            resumes the run.
        HUNG: stopped by the watchdog because there was no progress.
    """

    DONE = 0
    ERROR = 1
    PEER_GONE = 69
    FAILURE = 70
    STOPPED = 75
    HUNG = 76
    INTERRUPTED = 130


class UserError(Exception):
    """Error that the user can fix. Commands print it without a traceback.

    Args:
        what: summary of the failure in one sentence.
        why: cause. Empty if ``what`` makes the cause obvious.
        remedy: instruction to the user, if possible a command to paste.
        on_all_ranks: every rank raises this error at the same point. Then only one rank prints it.
        code: exit code of the command. FAILURE if the same command may succeed.
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
        # File names and file contents may have control characters, which a terminal would execute.
        return "\n".join(map(escape_to_one_line, lines))


def escape_character(character: str) -> str:
    r"""Return a character, or its escape (``\n``, ``\u202e``) if a terminal or a browser would interpret it."""
    if character.isprintable() or unicodedata.category(character) == "Zs":
        return character
    return character.encode("unicode_escape").decode("ascii")


def escape_to_one_line(text: str) -> str:
    """Escape all control characters of untrusted text, also line ends and tabs."""
    return text if text.isprintable() else "".join(map(escape_character, text))


def escape_controls(text: str) -> str:
    """Escape the control characters of untrusted text for a terminal. Line ends and tabs are not escaped."""
    if text.isprintable():
        return text
    return "".join(character if character in "\n\t" else escape_character(character) for character in text)


class PeerLostError(Exception):
    """Error of a rank when another process of the group ended or did not join."""


def is_memory_error(error: BaseException) -> bool:
    """Return whether an error of Python or of the operating system means that there is no memory left."""
    return isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM)
