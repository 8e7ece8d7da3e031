"""What is looked at: facts of the machine and of what is installed, without a judgement."""

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
from crepe_dist.diagnosis.probe import SECONDS
from crepe_dist.distributed import device
from crepe_dist.distributed.launch import Launch, horovodrun, threads
from crepe_dist.errors import UserError

PROBE = (sys.executable, "-m", "crepe_dist.diagnosis.probe")
SUBJECTS = ("cuda", "kernels", "mxnet", "horovod")
TOOL_SECONDS = 15.0  # of nvidia-smi, which may hang with its driver
RESOLVE_SECONDS = 5.0
FOLDERS = ("runs", "data")  # of the folder in which commands are typed
TRIED_BYTES = 1 << 20

Facts = dict[str, Any]


def collect() -> Facts:
    """JSON-able; neither names of the user, of the machine or of folders are in it, so that it may be published."""
    return {
        "machine": machine.describe(),
        "cores": {"there": os.cpu_count(), "allowed": len(os.sched_getaffinity(0)), "quota": machine.core_quota()},
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
    bound = os.environ.get("OMP_PROC_BIND", "")
    try:
        alone, of_two = threads(Launch()), threads(Launch(local_size=2))
    except UserError as error:
        return {"alone": 0, "of two": 0, "trouble": error.what, "remedy": error.remedy, "OMP_PROC_BIND": bound}
    return {"alone": alone, "of two": of_two, "trouble": "", "OMP_PROC_BIND": bound}


def folder(path: Path) -> dict[str, Any]:
    """Bytes of the file system where a folder is or would be made, and why nothing can be written there, or ''."""
    there = next(each for each in (path, *path.absolute().parents) if each.exists())
    try:
        usage = shutil.disk_usage(there)
        with tempfile.TemporaryFile(dir=there) as stream:
            os.posix_fallocate(stream.fileno(), 0, TRIED_BYTES)
    except OSError as error:
        return {"total": 0, "free": 0, "trouble": error.strerror or str(error)}
    return {"total": usage.total, "free": usage.free, "trouble": ""}


def _unresolved(name: str) -> str:
    """Why the name has no IPv4 address, or ''; a name server that is gone holds it up for a few seconds only."""
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
    """Whether `horovodrun` is there, stands beside this Python, and is what a shell finds by that name."""
    found, by_shell = horovodrun(), shutil.which("horovodrun")
    own = found is not None and Path(found).parent == Path(sys.executable).parent
    return {"found": found is not None, "own": own, "by name": by_shell is not None and by_shell == found}


def _driver() -> dict[str, Any]:
    """The NVIDIA driver, as nvidia-smi tells it."""
    tool = shutil.which("nvidia-smi")
    found = {"device files": device.has_gpu_driver(), "nvidia-smi": tool is not None, "version": "", "trouble": ""}
    if tool is None:
        return found
    query = [tool, "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(
            query, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=TOOL_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return {**found, "trouble": str(error)}
    lines = done.stdout.split("\n") + done.stderr.split("\n")
    said = next((line.strip() for line in lines if line.strip()), "")
    return {**found, "version": said} if done.returncode == 0 else {**found, "trouble": said}


def probe(command: tuple[str, ...] = PROBE, seconds: float = SECONDS) -> Facts:
    """What ``crepe_dist.diagnosis.probe`` found; where it did not come to a subject, the subject's ``trouble``."""
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=seconds, check=False, start_new_session=True
        )
        out, trouble = done.stdout, f"the process that looks ended with code {done.returncode}" * bool(done.returncode)
    except subprocess.TimeoutExpired as error:
        out, trouble = error.stdout or b"", f"the process that looks was ended after {seconds:g} s"
    found: Facts = {"gpus": [], **{name: {"trouble": trouble or "it said nothing"} for name in SUBJECTS}}
    for line in out.decode("utf-8", "replace").splitlines():
        if line.startswith("{") and line.endswith("}"):  # a library may print, and a kill cut a line
            found.update(json.loads(line))
    return found
