"""Watched execution of commands on untrusted files in one process: `python -m tests.helpers.watched CASES`.

CASES is a JSON list of {"name", "command", "arguments", "cwd", "measured", "limits"}. One JSON object is printed per
case. Cases that are not measured come first. They import and compile what any use of the commands imports and compiles.
"limits" are lower limits of the reader of tables.
"""

import contextlib
import importlib
import io
import json
import os
import re
import sys
import time
from pathlib import Path
from typing import Any
from unittest import mock

from crepe_dist import cli, network_registry
from crepe_dist import command_runner as commands
from crepe_dist.distributed.launch import import_mxnet
from crepe_dist.preparing.formats import tables

FORBIDDEN = {
    "os.system", "os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "os.spawn", "pty.spawn", "subprocess.Popen",
    "pickle.find_class", "socket.connect", "socket.bind", "socket.getaddrinfo", "socket.sendto", "ctypes.dlopen",
    "shelve.open", "sqlite3.connect", "urllib.Request", "webbrowser.open", "code.__new__",
}  # fmt: skip
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
CHANGING = {"os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.truncate", "os.chmod"}
DRIVER = "libcuda.so.1"  # Loaded to look for GPUs.
INSTALLED = (sys.prefix, sys.base_prefix, str(Path(__file__).parents[2]))


def _is_installed(name: str | bytes | None) -> bool:
    """Return whether a file belongs to installed code: our kernels, Python modules, and the templates of Jinja."""
    return os.fsdecode(name or "").startswith((*INSTALLED, "<frozen"))


class Watch:
    """Record of events between ``start`` and ``stop``."""

    def __init__(self) -> None:
        self.allowed = ""
        self.seen: list[str] = []
        sys.dont_write_bytecode = True  # A measured case may be the first that imports a module.
        sys.addaudithook(self._hook)

    def _hook(self, event: str, arguments: Any) -> None:
        if not self.allowed:
            return
        loads_ours = event == "ctypes.dlopen" and (arguments[0] == DRIVER or _is_installed(arguments[0]))
        if event in FORBIDDEN and not loads_ours:
            self.seen.append(f"{event} {arguments!r:.200}")
        elif event == "open" and isinstance(arguments[2], int) and arguments[2] & WRITING:
            self._outside(event, arguments[0])
        elif event in CHANGING:
            for place in arguments[:2]:
                if isinstance(place, (str, bytes, os.PathLike)):
                    self._outside(event, place)
        elif event == "compile" and not _is_installed(arguments[1]):
            self.seen.append(f"compile {arguments[1]} {arguments[0]!r:.200}")
        elif event == "exec" and not _is_installed(arguments[0].co_filename):
            self.seen.append(f"exec {arguments[0]!r:.200}")

    def _outside(self, event: str, place: Any) -> None:
        path = os.path.realpath(os.fsdecode(place)) if not isinstance(place, int) else self.allowed
        if path != os.devnull and not (path + "/").startswith(self.allowed + "/"):
            self.seen.append(f"{event} {path}")


def memory(name: str) -> int:
    """Return a number of megabytes from /proc/self/status."""
    found = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="ascii"))
    assert found
    return int(found[1]) >> 10


def run(case: dict[str, Any], watch: Watch) -> dict[str, Any]:
    os.chdir(case["cwd"])
    sys.argv = [case["command"], *case["arguments"]]
    out, err = io.StringIO(), io.StringIO()
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # Resets the peak.
    before, start = memory("VmRSS"), time.process_time()
    watch.seen, watch.allowed = [], os.path.realpath(case["cwd"]) if case["measured"] else ""
    code: Any = None
    try:
        with (
            mock.patch.dict(vars(tables), case.get("limits", {})),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
        ):
            commands.run(lambda: cli.main(case["command"]))
    except SystemExit as end:
        code = end.code
    except BaseException as error:
        code = f"{type(error).__name__}: {error}"[:500]
    watch.allowed = ""
    return {
        "name": case["name"],
        "code": code,
        "out": out.getvalue()[:5000],
        "err": err.getvalue()[:5000],
        "seconds": time.process_time() - start,
        "megabytes": memory("VmHWM") - before,
        "seen": watch.seen,
    }


def main() -> None:
    import_mxnet()
    importlib.import_module("crepe_dist.engines.cpu_engine")  # A run imports it with its first network.
    for kind in network_registry.NETWORKS:
        network_registry.config_class(kind)  # A dataclass compiles its methods.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    watch = Watch()
    for case in json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")):
        answers.write(json.dumps(run(case, watch)) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
