"""Commands as the user of this process would type them, for the help and for remedies to paste."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

STARTED_AS = "CREPE_DIST_STARTED_AS"  # set by supervise for its workers: what precedes the name of a command
SUPERVISE = "supervise"


def program(command: str) -> str:
    """Spell a command in the way this one was started: `crepe`, or `python -m crepe_dist`."""
    return f"{'crepe' if Path(sys.argv[0]).name == 'crepe' else 'python -m crepe_dist'} {command}"


def front(environment: Mapping[str, str] = os.environ) -> str:
    """Return `uv run ` in a process that uv started, since its programs are not on the path of the user's shell."""
    return "uv run " if "UV" in environment else ""


def typed(command: str, environment: Mapping[str, str] = os.environ) -> str:
    """Spell a command as the user would type it, for one process."""
    started_as = environment.get(STARTED_AS)
    return f"{started_as}{command}" if started_as else f"{front(environment)}{program(command)}"


def passed_on() -> dict[str, str]:
    """Return the variables that let a worker spell commands as the user of this process would."""
    return {STARTED_AS: typed("")}


def launched(command: str, environment: Mapping[str, str] = os.environ) -> str:
    """Spell a command as the user would type it, for as many processes as this one is part of.

    That is known behind `horovodrun` and `supervise` on one host; elsewhere this is ``typed``.
    """
    processes = environment.get("HOROVOD_SIZE", "1")
    if processes == "1" or environment.get("HOROVOD_CROSS_SIZE") != "1":
        return typed(command, environment)
    if STARTED_AS in environment:
        return f"{typed(SUPERVISE, environment)} -np {processes}"
    return f"{front(environment)}horovodrun -np {processes} {program(command)}"
