"""Programs that tests need: tests without them are skipped, and the summary says how to install them."""

from __future__ import annotations

import os
import re
import shutil
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import pytest

_TABLE = Path(__file__).parents[2] / ".ci" / "programs"
PACKAGES = dict(line.split() for line in _TABLE.read_text(encoding="utf-8").splitlines() if not line.startswith("#"))
NO_FEATURE = "this processor has no "  # starts the reason of a skip; the feature follows


def which(program: str) -> str | None:
    """Find a program, daemons included: a user's ``PATH`` often leaves them out."""
    return shutil.which(program, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


def needs(*programs: str, root: bool = False, others: Iterable[str] = ()) -> pytest.MarkDecorator:
    """Skip a test on a machine without one of the programs.

    Args:
        root: skip it for other users than root, too.
        others: things that are missing, whatever the programs.
    """
    missing = [program for program in programs if which(program) is None]
    if root and os.geteuid() != 0:
        missing.append("root")
    missing += others
    return pytest.mark.skipif(bool(missing), reason=f"needs {', '.join(missing)}")


def summary(reasons: Iterable[str]) -> list[str]:
    """Count the skipped tests by what was missing, a line for tools and a line for processor features."""
    tools: Counter[str] = Counter()
    features: Counter[str] = Counter()
    for reason in reasons:
        reason = reason.removeprefix("Skipped: ")
        if reason.startswith(NO_FEATURE):
            features[reason.removeprefix(NO_FEATURE)] += 1
        elif found := re.match("needs (.+)", reason):
            tools.update(found[1].split(", "))
    lines = []
    if tools:
        packages = sorted({PACKAGES[tool] for tool in tools if tool in PACKAGES})
        install = f"; to run them: apt-get install -y {' '.join(packages)}" if packages else ""
        lines.append(f"skipped, missing tools: {_counted(tools)}{install}")
    if features:
        lines.append(f"skipped, missing processor features: {_counted(features)}")
    return lines


def _counted(tests: Counter[str]) -> str:
    return ", ".join(f"{name} ({count} test{'s' if count > 1 else ''})" for name, count in sorted(tests.items()))
