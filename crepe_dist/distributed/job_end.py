"""Message of `horovodrun` about a job that failed; our build of Horovod prints it in place of a traceback."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from crepe_dist.errors import ExitCode

PROCESS_EXIT = re.compile(r"Process name: (\d+)\s+Exit code: (\d+)")  # of Horovod 0.28.1


def explain_horovodrun_exit(error: Exception, command: Sequence[str]) -> str:
    """Return the last line that `horovodrun` prints.

    Args:
        command: its arguments, with its own name first.

    Raises:
        Exception: ``error``, if it is of another kind.
    """
    if (match := PROCESS_EXIT.search(str(error))) is None:
        raise error
    rank, code = match[1], int(match[2])
    again = shlex.join([Path(command[0]).name, *(word for word in command[1:] if word != "--fresh")])
    if code == ExitCode.ERROR:
        return f"error: rank {rank} could not continue; its message above says what to do"
    killed = f"was killed by signal {code - 128}" if code > 128 else f"ended with exit code {code}"
    happened = "stopped on request, and saved" if code == ExitCode.STOPPED else f"error: rank {rank} {killed}"
    return f"{happened}; run the same command again to resume:\n  {again}"
