"""Collection of facts about the machine and the installed software, without judging them."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

from crepe_dist import machine
from crepe_dist.diagnosis.probe import SECONDS, SUBJECTS
from crepe_dist.distributed import device
from crepe_dist.distributed.launch import Launch, horovodrun, threads
from crepe_dist.errors import UserError

PROBE = (sys.executable, "-m", "crepe_dist.diagnosis.probe")
TOOL_SECONDS = 15.0  # for nvidia-smi, which hangs if its driver does
RESOLVE_SECONDS = 5.0
FOLDERS = ("runs", "data")  # relative to the current folder
TEST_FILE_BYTES = 1 << 20

Facts = dict[str, Any]


def collect() -> Facts:
    """Collect JSON-able facts. They contain no names of users, hosts or folders, so they can be published."""
    return {
        "machine": machine.describe(),
        "cores": {"there": os.cpu_count(), "allowed": machine.cores(), "quota": machine.core_quota()},
        "threads": _threads(),
        "memory": {"total": machine.memory(), "free": machine.available_memory()},
        "folders": {name: folder(Path(name)) for name in FOLDERS},
        "shared memory": folder(machine.SHARED_MEMORY),
        "limits": machine.limits(),
        "hostname": {"trouble": _unresolved(socket.gethostname())},
        "horovodrun": _launcher(),
        "driver": _driver(),
        **probe(),
    }


def _threads() -> dict[str, Any]:
    try:
        alone, of_two = threads(Launch()), threads(Launch(local_size=2))
    except UserError as error:
        return {"alone": 0, "of two": 0, "trouble": error.what, "remedy": error.remedy}
    return {"alone": alone, "of two": of_two, "trouble": ""}


def folder(path: Path) -> dict[str, Any]:
    """Return the size of the file system of a folder, which need not exist yet, and why it is not writable, or ''."""
    existing = next(parent for parent in (path, *path.absolute().parents) if parent.exists())
    try:
        usage = shutil.disk_usage(existing)
        with tempfile.TemporaryFile(dir=existing) as stream:
            os.posix_fallocate(stream.fileno(), 0, TEST_FILE_BYTES)
    except OSError as error:
        return {"total": 0, "free": 0, "trouble": error.strerror or str(error)}
    return {"total": usage.total, "free": usage.free, "trouble": ""}


def _unresolved(name: str) -> str:
    """Explain why a name has no IPv4 address, or return ''; give up on a silent name server after a few seconds."""
    trouble = [f"no answer within {RESOLVE_SECONDS:g} s"]

    def resolve() -> None:
        try:
            socket.getaddrinfo(name, None, socket.AF_INET)
            trouble[0] = ""
        except OSError as error:
            trouble[0] = error.strerror or str(error)

    thread = threading.Thread(target=resolve, daemon=True)
    thread.start()
    thread.join(RESOLVE_SECONDS)
    return trouble[0]


def _launcher() -> dict[str, bool]:
    """Look for ``horovodrun``: anywhere, beside this Python, and on the PATH."""
    program, by_shell = horovodrun(), shutil.which("horovodrun")
    own = program is not None and Path(program).parent == Path(sys.executable).parent
    return {"found": program is not None, "own": own, "by name": by_shell is not None and by_shell == program}


def _driver() -> dict[str, Any]:
    """Query the NVIDIA driver with nvidia-smi."""
    tool = shutil.which("nvidia-smi")
    about = {"device files": device.has_gpu_driver(), "nvidia-smi": tool is not None, "version": "", "trouble": ""}
    if tool is None:
        return about
    query = [tool, "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(
            query, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=TOOL_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return {**about, "trouble": str(error)}
    lines = done.stdout.split("\n") + done.stderr.split("\n")
    first = next((line.strip() for line in lines if line.strip()), "")
    return {**about, "version": first} if done.returncode == 0 else {**about, "trouble": first}


def probe(command: tuple[str, ...] = PROBE, seconds: float = SECONDS) -> Facts:
    """Run ``crepe_dist.diagnosis.probe``; a subject that it did not reach gets a ``trouble``."""
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=seconds, check=False, start_new_session=True
        )
        out, trouble = done.stdout, f"the probe process ended with code {done.returncode}" * bool(done.returncode)
    except subprocess.TimeoutExpired as error:
        out, trouble = error.stdout or b"", f"the probe process timed out after {seconds:g} s"
    facts: Facts = {"gpus": [], **{name: {"trouble": trouble or "the probe printed nothing"} for name in SUBJECTS}}
    for line in out.decode("utf-8", "replace").splitlines():
        if line.startswith("{") and line.endswith("}"):  # skip what libraries print, and lines cut off by a kill
            facts.update(json.loads(line))
    return facts
