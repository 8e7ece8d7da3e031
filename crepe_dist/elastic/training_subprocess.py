"""A training that another program starts in processes of its own; its errors come back as exceptions."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from crepe_dist.distributed.launch import env_without_rank
from crepe_dist.distributed.signals import terminate_with_parent
from crepe_dist.errors import ExitCode, UserError
from crepe_dist.files.atomic_write import write_text

CONFIG = "settings.yaml"
LOG = "log.txt"
# Settings of a training whose records nobody reads.
NO_REPORTS = {f"logging.{name}": False for name in ("report", "tensorboard")}
MAX_RESTARTS = 2  # of a training that was killed
POLL_SECONDS = 0.2  # seconds between looking for what a training has printed
GRACE_SECONDS = 10.0  # seconds between asking a training to stop and killing it
MESSAGE = re.compile(r"\berror: (.*)(?:\n.*?\bwhy: (.*))?(?:\n.*?\bdo:  (.*))?")
LOG_TAIL = 1 << 16  # characters of the log that are searched for a message


@contextmanager
def training_subprocess(
    settings: Mapping[str, Any], folder: Path, processes: int = 1
) -> Iterator[subprocess.Popen[bytes]]:
    """Start ``crepe_dist.train``, or ``supervise`` with several processes; end it on leaving, if it still runs.

    Args:
        settings: settings by their dotted names, such as ``{"data.source": "data/reviews"}``.
        folder: existing folder for the file of settings, the log and a crash report; where the process runs.
    """
    write_text(folder / CONFIG, yaml.safe_dump(group_settings(settings), sort_keys=False))
    command = [sys.executable, "-m", "crepe_dist.train"]
    if processes > 1:
        command[-1:] = ["crepe_dist", "supervise", "-np", str(processes), "--max-restarts", "0", "--grace", "5"]
    with (folder / LOG).open("wb") as log:
        process = subprocess.Popen(
            [*command, "--config", CONFIG],
            cwd=folder,
            env=env_without_rank(),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            preexec_fn=terminate_with_parent,
        )
    try:
        yield process
    finally:
        terminate(process)


def iter_log_lines(process: subprocess.Popen[bytes], folder: Path) -> Iterator[str]:
    """Yield the lines that a training prints until it ends, each within ``INTERVAL`` seconds, without their end."""
    with (folder / LOG).open(encoding="utf-8", errors="replace") as log:
        rest = ""
        while True:
            has_ended = process.poll() is not None
            *lines, rest = (rest + log.read()).split("\n")
            yield from lines
            if has_ended:
                return
            time.sleep(POLL_SECONDS)


def train_in_subprocess(
    settings: Mapping[str, Any], folder: Path, processes: int = 1, seconds: float | None = None
) -> bool:
    """Train to the end, as ``training`` does; resume a training that was killed, at most ``RESTARTS`` times.

    Args:
        seconds: time after which it is ended; ``None``: no limit.

    Returns:
        False if the time was over.
    """
    due = None if seconds is None else time.monotonic() + seconds
    for restarts in range(MAX_RESTARTS + 1):
        with training_subprocess(settings, folder, processes) as process:
            try:
                code = process.wait(None if due is None else max(0.0, due - time.monotonic()))
            except subprocess.TimeoutExpired:
                return False
        if code == 0:
            return True
        if restarts == MAX_RESTARTS or not signal_name(code):
            break
    raise error_from_log(folder, code)


def signal_name(code: int) -> str:
    """Return the name of the signal that ended a process, by its exit code or that of supervise; else nothing."""
    number = signal.SIGTERM if code == ExitCode.STOPPED else -code if code < 0 else code - 128
    return next((known.name for known in signal.Signals if known == number), "")


def terminate(process: subprocess.Popen[bytes]) -> None:
    """Ask a training to stop, and kill it if it takes longer than ``GRACE`` seconds."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
    process.wait()


def error_from_log(folder: Path, code: int) -> UserError:
    """Return the error of a training that ended with an exit code other than 0, as its log tells it."""
    text = (folder / LOG).read_text(encoding="utf-8", errors="replace")[-LOG_TAIL:]
    if message := MESSAGE.search(text):
        what, why, remedy = (part or "" for part in message.groups())
        return UserError(what.strip(), why.strip(), remedy.strip(), code=ExitCode.ERROR)
    last = next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "it printed nothing")
    how, remedy = f"ended with exit code {code}", "report this"
    if name := signal_name(code):
        how, remedy = f"was ended by {name}", "run the same command again, with more memory if that ran out"
    return UserError(f"training {how}", last[:300], remedy, code=ExitCode.FAILURE)


def group_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Convert settings by dotted names to the groups of a file of settings."""
    groups: dict[str, Any] = {}
    for dotted, value in settings.items():
        group, _, name = dotted.rpartition(".")
        plain = value.item() if hasattr(value, "item") else value  # NumPy's numbers, which searches over settings make
        (groups.setdefault(group, {}) if group else groups)[name] = plain
    return groups
