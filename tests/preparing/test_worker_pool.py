"""Worker processes: the error about a worker that ended names the cause."""

import os
import re
import signal

import pytest

from crepe_dist.errors import UserError
from crepe_dist.preparing.worker_pool import call_inherited, open_worker_pool


def end(code: int) -> int:
    """End this process with an exit code as in ``WorkerProcess.exitcode``. Return the code if it is 0."""
    if code < 0:
        os.kill(os.getpid(), -code)
    if code > 0:
        os._exit(code)
    return code


@pytest.mark.parametrize("is_forked", [True, False])
@pytest.mark.parametrize(
    ("code", "how"),
    [
        (-signal.SIGKILL, "was killed by signal 9 (Killed)"),
        (-signal.SIGXCPU, "was killed by signal 24 (CPU time limit exceeded)"),
        (-signal.SIGTERM, "was killed by signal 15 (Terminated)"),
        (3, "ended with code 3"),
    ],
)
def test_the_error_says_how_a_worker_ended_and_guesses_memory_only_after_sigkill(code, how, is_forked):
    with (
        pytest.raises(UserError, match=f"a worker process {re.escape(how)}") as caught,
        open_worker_pool(2, "crepe predict …", end if is_forked else None) as workers,
    ):
        list(workers.map_in_order(call_inherited if is_forked else end, [0, 0, code, 0, 0]))
    assert ("memory" in caught.value.why) == (code == -signal.SIGKILL)
    assert caught.value.remedy.endswith("crepe predict …")
