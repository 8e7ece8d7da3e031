"""Training in a subprocess of another program.

Errors of the subprocess are raised as exceptions.
"""

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
from crepe_dist.settings.config import group_settings

CONFIG = "settings.yaml"  # Name of the configuration file in the folder of the subprocess.
LOG = "log.txt"  # Name of the file with the output of the subprocess.
MAX_RESTARTS = 2  # Maximum number of restarts of a subprocess that a signal has ended.
POLL_SECONDS = 0.2  # Seconds between two reads of the output.
GRACE_SECONDS = 10.0  # Seconds between the request to stop and the kill of a subprocess that has not exited.
# Error message in the output of a command.
MESSAGE = re.compile(r"\berror: (.*)(?:\n.*?\bwhy: (.*))?(?:\n.*?\bdo:  (.*))?")
LOG_TAIL = 1 << 16  # Number of characters at the end of the output that are searched for an error message.


@contextmanager
def training_subprocess(
    settings: Mapping[str, Any], folder: Path, processes: int = 1
) -> Iterator[subprocess.Popen[bytes]]:
    """Start ``train``, or ``supervise`` for more than one process. Stop it at the end of the block if it still runs.

    Args:
        settings: Settings by their dotted names, such as ``{"data.source": "data/reviews"}``.
        folder: Existing folder that becomes the working directory of the process. The configuration file and the log
            are written to it.
        processes: Number of processes.
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
    """Yield the complete lines that a subprocess prints, without line endings, until it exits.

    The output is read every ``POLL_SECONDS``.
    """
    with (folder / LOG).open(encoding="utf-8", errors="replace") as log:
        rest = ""
        while True:
            has_ended = process.poll() is not None
            *lines, rest = (rest + log.read()).split("\n")
            yield from lines
            if has_ended:
                return
            time.sleep(POLL_SECONDS)


def train_in_subprocess(settings: Mapping[str, Any], folder: Path) -> None:
    """Train in a subprocess until training has finished.

    If a signal ends the subprocess, start it again to resume training, at most ``MAX_RESTARTS`` times.

    Args:
        settings, folder: See ``training_subprocess``.

    Raises:
        UserError: Training has failed.
    """
    for restarts in range(MAX_RESTARTS + 1):
        with training_subprocess(settings, folder) as process:
            code = process.wait()
        if code == 0:
            return
        if restarts == MAX_RESTARTS or not signal_name(code):
            break
    raise error_from_log(folder, code)


def signal_name(code: int) -> str:
    """Return the name of the signal that ended a process, or "" if the process was not ended by a signal.

    Args:
        code: Exit code of the process, or of ``supervise``.
    """
    number = signal.SIGTERM if code == ExitCode.STOPPED else -code if code < 0 else code - 128
    return next((known.name for known in signal.Signals if known == number), "")


def terminate(process: subprocess.Popen[bytes]) -> None:
    """Ask a subprocess to stop. Kill it if it has not ended after ``GRACE_SECONDS``."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
    process.wait()


def error_from_log(folder: Path, code: int) -> UserError:
    """Create the error for a failed subprocess from the end of its output and its exit code."""
    text = (folder / LOG).read_text(encoding="utf-8", errors="replace")[-LOG_TAIL:]
    if message := MESSAGE.search(text):
        what, why, remedy = (part or "" for part in message.groups())
        return UserError(what.strip(), why.strip(), remedy.strip(), code=ExitCode.ERROR)
    last = next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "it printed nothing")
    how, remedy = f"ended with exit code {code}", "report this"
    if name := signal_name(code):
        remedy = "run the same command again" + ", with more memory if the memory ran out" * (name == "SIGKILL")
        how = f"was ended by {name}"
    return UserError(f"training {how}", last[:300], remedy, code=ExitCode.FAILURE)
