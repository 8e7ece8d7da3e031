"""Report of an unexpected failure: a file with the traceback, in the run's folder while training, else in the current.

Writing it must not hide the failure, so errors while writing are ignored.
"""

from __future__ import annotations

import json
import os
import re
import socket
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from crepe_dist import invocation, machine
from crepe_dist.distributed.launch import detect
from crepe_dist.errors import UserError
from crepe_dist.files import write_text

LOGIN = re.compile(r"(?<=://)[^/@\s]+(?=@)")


@dataclass
class Context:
    """Context that a report contains besides the failure; ``where`` returns step and epoch."""

    folder: Path = Path()
    settings: Mapping[str, Any] = field(default_factory=dict)
    where: Callable[[], Mapping[str, Any]] = dict


_context = Context()


def expect(context: Context) -> None:
    """Set the context of later reports; a command starts with an empty one."""
    global _context
    _context = context


def unexpected(error: Exception) -> UserError:
    """Write the report of an exception and return the error to show; without a report, print the traceback."""
    trace = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    report = _write(trace)
    if report is None:
        print(trace, file=sys.stderr, end="", flush=True)
    first = f"{type(error).__name__}: {error}".strip().split("\n")[0][:300]
    where = f"the traceback is in {report}" if report else "no report could be written"
    return UserError(
        f"unexpected failure: {first}",
        f"a bug in crepe_dist or in a library it uses; {where}",
        f"run {invocation.typed('doctor')}; if it finds no problem, open an issue with that file",
    )


def _write(trace: str) -> Path | None:
    launch = detect()
    with suppress(Exception):
        about = {
            "command": sys.argv,
            "process": f"rank {launch.rank} of {launch.size}, pid {os.getpid()} on {socket.gethostname()}",
            "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "where": _context.where(),
            "settings": _context.settings,
            "machine": machine.describe(),
        }
        path = _context.folder / f"crash-report{f'-rank{launch.rank}' * (launch.size > 1)}.txt"
        write_text(path, LOGIN.sub("…", f"{trace}\n{json.dumps(about, indent=2, default=str)}\n"))
        return path
    return None
