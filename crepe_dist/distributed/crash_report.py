"""Report of an unexpected failure: ``crash-report.json``, one per failure of a group.

It is written to the run's folder while training, else to the current folder, or to the system's temporary folder if
neither is writable. Writing it must not hide the failure or delay the end of the process: errors while writing are
ignored, and writing is given up after ``SECONDS``.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import socket
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from crepe_dist import invocation, machine
from crepe_dist.distributed.environment import allowed
from crepe_dist.distributed.launch import detect
from crepe_dist.errors import UserError

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
        folder: the run's folder.
        config: the run's settings.
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
    place = write(first, trace, code)
    if place is None or os.environ.get(TRACEBACK) == "1":
        print(trace, file=sys.stderr, end="", flush=True)
    return UserError(
        f"unexpected failure: {first}",
        f"a bug in crepe_dist or in a library it uses; {said(place)}",
        f"run {invocation.typed('doctor')}; if it finds no problem, open an issue with that report ({TRACEBACK}=1 "
        "shows the traceback)",
    )


def said(place: Path | None) -> str:
    return f"the report is in {place}" if place else "no report could be written"


def write(what: str, trace: str, code: int) -> Path | None:
    """Write the report and return its path; another process's report counts if it was written first.

    Args:
        what: the failure, in one line.
        trace: traceback of the exception, or the stack of the process.
        code: exit code of the process.
    """
    found: list[Path] = []

    def work() -> None:
        with suppress(Exception):
            content = _content(what, trace, code)
            for folder in (_context.folder or Path(), Path(), None):
                if place := _put(folder, content):
                    found.append(place)
                    return

    thread = threading.Thread(target=work, name="crash report", daemon=True)
    with suppress(RuntimeError):  # no thread can be started
        thread.start()
        thread.join(SECONDS)
    return found[0] if found else None


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
            name: _without_secrets(value) for name, value in allowed(os.environ).items() if not SECRET.search(name)
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
    found = {}
    for path in sorted((folder / "stacks").glob("rank_*.txt"))[:ITEMS]:
        lines = _tail(path, TEXT).splitlines(keepends=True)
        starts = [index for index, line in enumerate(lines) if line.startswith('{"rank"')]
        found[path.stem] = "".join(lines[starts[-1] if starts else 0 :])
    return found


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
        return {str(name)[:100]: _bounded(each) for name, each in list(value.items())[:ITEMS]}
    if isinstance(value, (list, tuple)):
        return [_bounded(each) for each in value[:ITEMS]]
    return value if isinstance(value, (int, float, type(None))) else str(value)[:TEXT]


def _put(folder: Path | None, content: str) -> Path | None:
    """Write the report into a folder and return its path, or ``None`` if that fails.

    Args:
        folder: ``None``: the system's temporary folder, under a name of its own.
    """
    temporary = ""
    try:
        with _alone(folder) as alone:
            place = folder / NAME if folder else None
            if place and (not alone or (place.is_file() and place.stat().st_mtime >= _context.since)):
                return place  # another rank is writing, or has written, about the same failure
            descriptor, temporary = tempfile.mkstemp(prefix=f"{Path(NAME).stem}-", suffix=".json", dir=folder)
            with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
                stream.write(content)
            if place is None:
                return Path(temporary)
            os.replace(temporary, place)
            return place
    except OSError:
        with suppress(OSError):
            os.unlink(temporary)
        return None


@contextmanager
def _alone(folder: Path | None) -> Iterator[bool]:
    """Lock a folder; yield false if another process holds the lock, true on a file system without locks."""
    if folder is None:
        yield True
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        alone = True
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            alone = False
        except OSError:
            pass
        yield alone
    finally:
        os.close(descriptor)
