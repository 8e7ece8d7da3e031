"""Report of an unexpected failure: ``crash-report.json``, one per failure of a group.

It is written to the run's folder while training, else to the current folder, or to the system's temporary folder if
neither is writable. Writing it must not hide the failure or delay the end of the process: errors while writing are
ignored, and writing is given up after ``SECONDS``.
"""

from __future__ import annotations

import json
import os
import re
import socket
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from crepe_dist import invocation, machine
from crepe_dist.distributed.environment import allowed
from crepe_dist.distributed.launch import detect
from crepe_dist.errors import UserError
from crepe_dist.files import write_text

FORMAT = 1
NAME = "crash-report.json"
TRACEBACK = "CREPE_DIST_TRACEBACK"  # 1: the traceback is shown as well
SECONDS = 3.0
STACKS_SECONDS = 0.3  # time that the other processes of this host get to write their stacks
TEXT = 16_000  # characters of a text that are kept, from its end
ITEMS = 64  # items of a list or mapping that are kept: ranks, threads, arguments
STEPS = 20
METRICS_TAIL = 1 << 16
SECRET = re.compile(r"secret|token|passw|credential|api_?key", re.IGNORECASE)
LOGIN = re.compile(r"(?<=://)[^/@\s]+(?=@)")


@dataclass
class Context:
    """Context that a report contains besides the failure.

    Args:
        ask: makes the other processes of this host write their stacks into the run's folder.
        since: seconds since the epoch; an older report belongs to another failure.
    """

    folder: Path | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    ask: Callable[[], None] = lambda: None
    since: float = field(default_factory=time.time)


_context = Context()


def expect(context: Context) -> None:
    """Set the context of later reports; a command starts with an empty one."""
    global _context
    _context = context


def unexpected(error: Exception, code: int) -> UserError:
    """Write the report of an exception and return the error to show; without a report, print the traceback."""
    trace = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    first = f"{type(error).__name__}: {error}".strip().split("\n")[0][:300]
    report = write(first, trace, code)
    if report is None or os.environ.get(TRACEBACK) == "1":
        print(trace, file=sys.stderr, end="", flush=True)
    return UserError(
        f"unexpected failure: {first}",
        f"a bug in crepe_dist or in a library it uses; {said(report)}",
        f"run {invocation.typed('doctor')}; if it finds no problem, open an issue with that report ({TRACEBACK}=1 "
        "shows the traceback)",
    )


def said(report: Path | None) -> str:
    return f"the report is in {report}" if report else "no report could be written"


def write(what: str, trace: str, code: int) -> Path | None:
    """Write the report and return its path; another process's report counts if it was written first."""
    written: list[Path] = []
    elsewhere = Path(tempfile.gettempdir()) / f"crash-report-{os.getpid()}.json"

    def work() -> None:
        with suppress(Exception):
            content = _content(what, trace, code)
            paths = ((_context.folder or Path()) / NAME, Path(NAME), elsewhere)
            written.append(next(path for path in paths if _put(path, content)))

    thread = threading.Thread(target=work, name="crash report", daemon=True)
    with suppress(RuntimeError):  # no thread can be started
        thread.start()
        thread.join(SECONDS)
    return written[0] if written else None


def _content(what: str, trace: str, code: int) -> str:
    launch = detect()
    report: dict[str, Any] = {
        "format": FORMAT,
        "error": what,
        "traceback": trace,
        "exit_code": int(code),
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "arguments": [_without_secrets(argument) for argument in sys.argv],
        "rank": launch.rank,
        "size": launch.size,
        "launcher": launch.launcher,
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "threads": _threads(),
    }
    folder = _context.folder
    parts: dict[str, Callable[[], Any]] = {
        "stacks": lambda: _stacks(folder) if folder else {},
        "last_steps": lambda: _last_steps(folder) if folder else [],
        "config": lambda: _context.config,
        "machine": machine.describe,
        "environment": lambda: {
            name: _without_secrets(value) for name, value in allowed().items() if not SECRET.search(name)
        },
    }
    for name, part in parts.items():
        try:
            report[name] = part()
        except Exception as error:
            report[name] = f"not known: {error!r}"
    return json.dumps(_bounded(report), indent=2) + "\n"


def _without_secrets(text: str) -> str:
    name, equals, _ = text.partition("=")
    return f"{name}=…" if equals and SECRET.search(name) else LOGIN.sub("…", text)


def _threads() -> dict[str, str]:
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    return {
        names.get(ident, str(ident)): "".join(traceback.format_stack(frame))
        for ident, frame in sys._current_frames().items()
    }


def _stacks(folder: Path) -> dict[str, str]:
    """Read the stacks that the ranks of this group have written, by file name."""
    _context.ask()
    time.sleep(STACKS_SECONDS)
    stacks = {}
    for path in sorted((folder / "stacks").glob("rank_*.txt"))[:ITEMS]:
        lines = _tail(path, TEXT).splitlines(keepends=True)
        starts = [index for index, line in enumerate(lines) if line.startswith('{"rank"')]
        stacks[path.stem] = "".join(lines[starts[-1] if starts else 0 :])
    return stacks


def _last_steps(folder: Path) -> list[Any]:
    records = []
    for line in _tail(folder / "metrics.jsonl", METRICS_TAIL).splitlines():
        with suppress(ValueError):  # the first line may be cut
            records.append(json.loads(line))
    return records[-STEPS:]


def _tail(path: Path, size: int) -> str:
    if not path.is_file():
        return ""
    with path.open("rb") as stream:
        stream.seek(max(0, path.stat().st_size - size))
        return stream.read(size).decode("utf-8", "replace")


def _bounded(value: Any) -> Any:
    if isinstance(value, str):
        return value if len(value) <= TEXT else f"… {value[-TEXT:]}"
    if isinstance(value, Mapping):
        return {str(name)[:100]: _bounded(item) for name, item in list(value.items())[:ITEMS]}
    if isinstance(value, (list, tuple)):
        return [_bounded(item) for item in value[:ITEMS]]
    return value if isinstance(value, (int, float, type(None))) else str(value)[:TEXT]


def _put(path: Path, content: str) -> bool:
    """Write the report, unless another rank has reported the same failure; return whether it is there."""
    try:
        if not path.is_file() or path.stat().st_mtime < _context.since:
            write_text(path, content)
    except OSError:
        return False
    return True
