"""Report of an unexpected failure: a file with the traceback in the current folder.

This module is apart from ``command_runner``, which must handle signals before it imports anything slow.
"""

from __future__ import annotations

import json
import os
import re
import socket
import sys
import time
import traceback
from pathlib import Path

from crepe_dist import hardware, invocation
from crepe_dist.distributed.launch import read_launcher_env
from crepe_dist.errors import UserError
from crepe_dist.files.atomic_write import write_text

LOGIN = re.compile(r"(?<=://)[^/@\s]+(?=@)")


def report_unexpected(error: Exception) -> UserError:
    """Write the report of an exception and return the error to show; without a report, print the traceback."""
    launch = read_launcher_env()
    trace = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    report = Path(f"crash-report{f'-rank{launch.rank}' * (launch.size > 1)}.txt").absolute()
    where = f"the traceback is in {report}"
    try:
        about = {
            "command": sys.argv,
            "process": f"rank {launch.rank} of {launch.size}, pid {os.getpid()} on {socket.gethostname()}",
            "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "machine": hardware.describe(),
        }
        write_text(report, LOGIN.sub("…", f"{trace}\n{json.dumps(about, indent=2, default=str)}\n"))
    except Exception:  # it must not hide the failure
        where = "no report could be written"
        print(trace, file=sys.stderr, end="", flush=True)
    first = f"{type(error).__name__}: {error}".strip().split("\n")[0][:300]
    return UserError(
        f"unexpected failure: {first}",
        f"a bug in crepe_dist or in a library it uses; {where}",
        f"run {invocation.command_line('doctor')}; if it finds no problem, open an issue with that file",
    )
