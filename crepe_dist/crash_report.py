"""Crash reports. After an unexpected error, the traceback is written to a file in the current folder.

This module is separate from ``command_runner``, which must install signal handlers before any slow import.
"""

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

LOGIN = re.compile(r"(?<=://)[^/@\s]+(?=@)")  # User name and password in a URL. They are removed from the report.


def report_unexpected(error: Exception) -> UserError:
    """Write the crash report of an exception, and return the error to show to the user.

    If the report cannot be written, the traceback is printed.
    """
    launch = read_launcher_env()
    trace = "".join(traceback.format_exception(error))
    report = Path(f"crash-report{f'-rank{launch.rank}' * (launch.size > 1)}.txt").absolute()
    where = f"the traceback is in {report}"
    try:
        context = {
            "command": sys.argv,
            "process": f"rank {launch.rank} of {launch.size}, pid {os.getpid()} on {socket.gethostname()}",
            "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "machine": hardware.describe(),
        }
        write_text(report, LOGIN.sub("…", f"{trace}\n{json.dumps(context, indent=2, default=str)}\n"))
    except Exception:  # An error while writing the report must not hide the original error.
        where = "no report could be written"
        print(trace, file=sys.stderr, end="", flush=True)
    summary = f"{type(error).__name__}: {error}".strip().split("\n")[0][:300]
    return UserError(
        f"unexpected failure: {summary}",
        f"crepe_dist or one of its libraries has a bug; {where}",
        f"open an issue, and attach the traceback and the output of {invocation.command_line('doctor')}",
    )
