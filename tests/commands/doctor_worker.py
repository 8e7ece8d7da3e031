"""Run `doctor` with the flags after the first argument, which names what is different on rank 1."""

import os
import sys
import time
from contextlib import nullcontext
from unittest import mock

from crepe_dist import cli, command_runner, hardware
from crepe_dist.commands import cluster_doctor, doctor
from crepe_dist.runs.run_dir import RunDir


def wait() -> list[doctor.Check]:
    time.sleep(10)
    return []


def change(kind: str) -> None:
    """Change this process."""
    original_time, original_versions = time.time, hardware.group_versions
    if kind == "version":
        hardware.group_versions = lambda: {**original_versions(), "numpy": "0.5"}
    elif kind == "folder":
        os.chdir("elsewhere")
    elif kind == "lock":
        mock.patch.object(RunDir, "lock", return_value=nullcontext()).start()
    elif kind == "clock":
        time.time = lambda: original_time() + 90
    elif kind == "disk":
        cluster_doctor.check_disk = lambda folder: doctor.Check("disk", "full\x1b[31m", "problem", "free some space")
    elif kind == "hang":
        mock.patch.object(cluster_doctor, "check_gpus", wait).start()


if __name__ == "__main__":
    kind, sys.argv[1:] = sys.argv[1], ["doctor", *sys.argv[2:]]
    if os.environ["RANK"] == "1":
        change(kind)
    elif kind == "hang":
        cluster_doctor.TIMEOUT_SECONDS = 3.0
    command_runner.run(cli.run)
