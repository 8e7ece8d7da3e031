"""Message that `horovodrun` prints after a job has failed.

Our build of Horovod prints this message instead of a traceback.
"""

import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from crepe_dist.errors import ExitCode

SSH_ERROR = 255  # Exit code of ssh if it cannot connect, or loses the connection.
PROCESS_EXIT = re.compile(r"Process name: (\d+)\s+Exit code: (\d+)")  # Error message of Horovod 0.28.1.


def explain_horovodrun_exit(error: Exception, command: Sequence[str]) -> str:
    """Return the message that `horovodrun` prints after a process of the job has failed or stopped.

    Args:
        error: Error that Horovod raised.
        command: Command line of `horovodrun`.

    Raises:
        Exception: ``error``, if it does not report the exit of a process.
    """
    if (match := PROCESS_EXIT.search(str(error))) is None:
        raise error
    rank, code = match[1], int(match[2])
    resume_command = shlex.join([Path(command[0]).name, *(word for word in command[1:] if word != "--fresh")])
    if code in (ExitCode.ERROR, ExitCode.HOST_ERROR):
        return f"error: rank {rank} could not continue; its message above says what to do"
    cause = f"was killed by signal {code - 128}" if code > 128 else f"ended with exit code {code}"
    if code == SSH_ERROR:
        cause = "could not be reached by ssh, or lost its connection; see the message of ssh above"
    outcome = "stopped on request, and saved" if code == ExitCode.STOPPED else f"error: rank {rank} {cause}"
    return f"{outcome}; run the same command again to resume:\n  {resume_command}"
