"""Programs that tests need: tests without them are skipped, and the reason says what to install."""

import os
import shutil
from collections.abc import Iterable
from pathlib import Path

import pytest

_TABLE = Path(__file__).parents[2] / ".ci" / "programs"
PACKAGES = dict(line.split() for line in _TABLE.read_text(encoding="utf-8").splitlines() if not line.startswith("#"))


def which(program: str) -> str | None:
    """Find a program, also in the folders of daemons, which a user's ``PATH`` often lacks."""
    return shutil.which(program, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


def needs(*programs: str, root: bool = False, others: Iterable[str] = ()) -> pytest.MarkDecorator:
    """Skip a test on a machine without one of the programs.

    Args:
        root: Whether to skip the test also for users other than root.
        others: Names of further things that are missing.
    """
    missing = [program for program in programs if which(program) is None]
    if root and os.geteuid() != 0:
        missing.append("root")
    missing += others
    packages = sorted({PACKAGES[program] for program in missing if program in PACKAGES})
    install = f"; apt-get install -y {' '.join(packages)}" if packages else ""
    return pytest.mark.skipif(bool(missing), reason=f"needs {', '.join(missing)}{install}")
