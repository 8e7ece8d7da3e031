"""Message of `horovodrun` about a job that failed; our build of Horovod prints it in place of a traceback."""

from __future__ import annotations

import errno
import re
import shlex
import shutil
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from crepe_dist.errors import ExitCode, UserError

ENDED = re.compile(r"Process name: (\d+)\s+Exit code: (\d+)")  # of Horovod 0.28.1
SEMAPHORES = "docker run --shm-size 2g; or delete what is not needed in /dev/shm"


def explained(error: Exception, command: Sequence[str]) -> str:
    """Return the last lines that `horovodrun` prints.

    Args:
        command: its arguments, with its own name first.

    Raises:
        Exception: ``error``, if it is of another kind.
    """
    same = "the same command" + " without --fresh" * ("--fresh" in command)
    words = [Path(command[0]).name, *(word for word in command[1:] if word != "--fresh")]
    again = shlex.join(words)
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        where = error.filename or "/dev/shm"
        return str(UserError("horovodrun has no space on a disk", f"{where} is full: {error.strerror}", SEMAPHORES))
    match = ENDED.search(str(error))
    if match is None:
        raise error
    rank, code = match[1], int(match[2])
    python = next((word for word in words if Path(word).name.startswith("python")), sys.executable)
    if code == ExitCode.ERROR and Path(shutil.which(python) or python).parent != Path(sys.executable).parent:
        return str(
            UserError(
                f"rank {rank} could not continue; its message is above",
                f"if that is a missing module: {python} is not the Python that crepe_dist is installed for",
                shlex.join(sys.executable if word == python else word for word in words),
            )
        )
    if code == ExitCode.ERROR:
        return f"error: rank {rank} could not continue; its message above says what to do"
    if code == ExitCode.STOPPED:
        return f"stopped on request, and saved; to resume, run {same} again:\n  {again}"
    resumes = "it resumes the run: " if "train" in re.split(r"[ .]", again) else ""
    remedy = f"run {same} again; {resumes}{again}"
    return str(UserError(f"rank {rank} {_ended(code)}", "its messages are above, if it left any", remedy))


def _ended(code: int) -> str:
    try:
        name = signal.Signals(code - 128).name
    except ValueError:
        return f"ended with exit code {code}"
    return f"was killed ({name}{'; often for lack of memory' if name == 'SIGKILL' else ''})"
