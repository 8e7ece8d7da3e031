"""The summary of a test session names missing programs and how to install them."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from tests import needs

ROOT = Path(__file__).parents[1]
EVERYWHERE = {"mount", "unshare", "nsenter", "chroot"}  # of Debian's essential packages
# uv is pip's. debootstrap: of a slow test that takes half an hour of downloads; apt-get: only on Debian.
UNLISTED = {"debootstrap", "apt-get", "uv"}


def test_skips_are_counted_by_tool_and_by_feature():
    reasons = ["Skipped: needs sshd, root", "Skipped: needs sshd", "Skipped: needs ss", "needs debootstrap"]
    reasons += [
        "Skipped: this processor has no AMX",
        "Skipped: this processor has no AMX",
        "Skipped: for the paper's size",
    ]
    assert needs.summary(reasons) == [
        "skipped, missing tools: debootstrap (1 test), root (1 test), ss (1 test), sshd (2 tests); "
        "to run them: apt-get install -y iproute2 openssh-server",
        "skipped, missing processor features: AMX (2 tests)",
    ]
    assert needs.summary(["Skipped: another reason"]) == []


def test_every_program_that_a_test_needs_has_a_package():
    found = set()
    for path in (ROOT / "tests").rglob("*.py"):
        for arguments in re.findall(r"\bneeds\(([^)]*)\)", path.read_text(encoding="utf-8")):
            found |= set(re.findall(r'"([\w-]+)"', arguments))
    assert {"strace", "sshd", "chromium"} <= found
    assert found <= needs.PACKAGES.keys() | EVERYWHERE | UNLISTED


def test_a_session_without_a_tool_says_so_in_its_last_lines(tmp_path):
    arguments = ["-n0", "-p", "no:cacheprovider", "tests/test_security.py", "-k", "no_folder_of_its_build"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *arguments],
        cwd=ROOT,
        env={"PATH": str(tmp_path), "HOME": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert "1 skipped" in done.stdout
    assert "missing tools: readelf (1 test); to run them: apt-get install -y binutils\n" in done.stdout
