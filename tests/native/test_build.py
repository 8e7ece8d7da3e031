"""The compilation of the kernels at installation, with a script in place of the compiler."""

from __future__ import annotations

import os
import runpy
import sys
import types
from pathlib import Path

import pytest

from crepe_dist.native import library

HOOK = Path(__file__).parents[2] / "tools" / "hatch_build.py"
INTERFACE = "hatchling.builders.hooks.plugin.interface"  # hatchling is in the environment of a build only
COMPILER = """#!/usr/bin/env bash
case "$*" in
-dumpmachine) echo x86_64-linux-gnu; exit;;
--version) echo "g++ 12"; exit;;
*-mamx*) echo "unknown option -mamx-tile" >&2; exit 1;;
esac
touch "STARTED/$$"
for _ in $(seq 200); do
    [ "$(ls STARTED | wc -l)" -ge 2 ] && printf kernels >"${@: -1}" && exit
    sleep 0.1
done
echo "no other compilation was started" >&2
exit 1
"""


@pytest.fixture
def compiled(tmp_path, monkeypatch, capfd):
    """Compile with ``COMPILER`` on a machine of two cores; return the builds."""
    started, compiler, folder = (tmp_path / name for name in ("started", "compiler", "native"))
    started.mkdir()
    folder.mkdir()
    compiler.write_text(COMPILER.replace("STARTED", str(started)))
    compiler.chmod(0o755)
    (folder / "constants.py").write_text((library.FOLDER / "constants.py").read_text(encoding="utf-8"))
    interface = types.ModuleType(INTERFACE)
    interface.__dict__["BuildHookInterface"] = object
    monkeypatch.setitem(sys.modules, INTERFACE, interface)
    monkeypatch.setenv("CXX", str(compiler))
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    return runpy.run_path(str(HOOK))["_compiled"](folder)["builds"], capfd.readouterr().err


def test_builds_are_compiled_beside_each_other_and_one_that_fails_is_left_out(compiled):
    builds, said = compiled
    assert set(builds) == set(library.BUILDS) - {"amx"}
    assert "without its kernels for amx:\nunknown option" in said
    assert all(f"compiled the kernels for {name}" in said for name in builds)
