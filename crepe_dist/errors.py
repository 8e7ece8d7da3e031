"""Errors shown to the user, and the exit codes and signals of all commands."""

from __future__ import annotations

import enum
import errno
import signal
import unicodedata

# SIGUSR2 means the same as SIGTERM: mpirun forwards it, but kills a second after SIGTERM; Grid Engine and LSF send it
# before they kill. SIGHUP: the terminal is closed.
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2, signal.SIGHUP)


class ExitCode(enum.IntEnum):
    """Exit codes, common to all commands. Codes from 64 to 78 follow ``sysexits.h`` where one fits.

    Attributes:
        ERROR: the user has to fix something; the same command would fail again.
        PEER_GONE: another process of the group ended; its own exit code gives the cause.
        FAILURE: unexpected error; the same command may succeed.
        STOPPED: stopped on request (SIGTERM). A run that had begun has saved its state; the same command resumes it.
        HUNG: the watchdog saw no progress.
    """

    DONE = 0
    ERROR = 1
    PEER_GONE = 69
    FAILURE = 70
    STOPPED = 75
    HUNG = 76
    INTERRUPTED = 130


class UserError(Exception):
    """An error that the user can fix; commands print it without a traceback.

    Args:
        what: summary of the failure, one sentence.
        why: cause, unless ``what`` makes it obvious.
        remedy: instruction to the user, preferably a command to paste.
        on_all_ranks: declaration that every rank raises the same error at the same point, so that one rank reports it.
        code: exit code of the command; FAILURE if running the command again may succeed.
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
        """Return the lines that are printed. The first line begins with ``kind``."""
        lines = [f"{kind}: {self.what}"]
        if self.why:
            lines.append(f"  why: {self.why}")
        if self.remedy:
            lines.append(f"  do:  {self.remedy}")
        # File names and contents may hold control characters that a terminal would act on.
        return "\n".join(map(escape_to_one_line, lines))


def escape_character(character: str) -> str:
    r"""Return the character, or its escape (``\n``, ``\u202e``) if a terminal or a browser would act on it."""
    if character.isprintable() or unicodedata.category(character) == "Zs":
        return character
    return character.encode("unicode_escape").decode("ascii")


def escape_to_one_line(text: str) -> str:
    """Escape the control characters of untrusted text, line ends and tabs included."""
    return text if text.isprintable() else "".join(map(escape_character, text))


def escape_controls(text: str) -> str:
    """Escape the control characters of untrusted text for a terminal; line ends and tabs stay."""
    if text.isprintable():
        return text
    return "".join(character if character in "\n\t" else escape_character(character) for character in text)


class PeerLostError(Exception):
    """Another process of the group ended or failed to join."""


def is_memory_error(error: BaseException) -> bool:
    """Tell whether an error says that there is no memory, as Python or as the kernel says it."""
    return isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM)
