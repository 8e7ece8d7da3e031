"""The one exception for everything that a user can mend, and the codes with which a command ends."""

from __future__ import annotations

import enum
import unicodedata


class ExitCode(enum.IntEnum):
    """Of every command; those above 1 are sysexits.h's nearest.

    Attributes:
        ERROR: a user can mend it; the same command would fail in the same way.
        PEER_GONE: another process of the group ended; its own code says why.
        FAILURE: unexpected; the same command may succeed.
        STOPPED: asked to stop (SIGTERM, the supervisor); all was saved, the same command goes on.
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
    """Something that the person at the keyboard can mend; shown without a traceback.

    Args:
        what: what went wrong, in one sentence.
        why: the cause, where it is not plain from ``what``.
        remedy: what to do about it.
        on_all_ranks: every rank raises this same error at the same point, so that one of them can speak for all.
        code: that the command ends with; FAILURE where running it again is the remedy.
    """

    def __init__(
        self,
        what: str,
        why: str = "",
        remedy: str = "",
        *,
        on_all_ranks: bool = False,
        code: ExitCode = ExitCode.ERROR,
    ) -> None:
        super().__init__(what)
        self.what = what
        self.why = why
        self.remedy = remedy
        self.on_all_ranks = on_all_ranks
        self.code = code

    def __str__(self) -> str:
        lines = [f"error: {self.what}"]
        if self.why:
            lines.append(f"  why: {self.why}")
        if self.remedy:
            lines.append(f"  do:  {self.remedy}")
        # What a terminal would act on may come from a file's name or content.
        return "\n".join("".join(map(shown, line)) for line in lines)


def shown(character: str) -> str:
    r"""The character, or its escape (``\n``, ``\u202e``) if a terminal or a browser would act on it."""
    if character.isprintable() or unicodedata.category(character) == "Zs":
        return character
    return character.encode("unicode_escape").decode("ascii")


def visible(text: str) -> str:
    """Text of unknown origin for a terminal: line ends and tabs stay, what else it would act on is shown escaped."""
    if text.isprintable():
        return text
    return "".join(character if character in "\n\t" else shown(character) for character in text)


class PeerGone(Exception):
    """Another process of the group ended, or does not come."""
