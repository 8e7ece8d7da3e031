"""The compilation of the kernels at installation, with a script in place of the compiler."""

import os
import runpy
import sys
import types
from pathlib import Path

import pytest

from crepe_dist.native import library

HOOK = Path(__file__).parents[2] / "tools" / "hatch_build.py"
INTERFACE = "hatchling.builders.hooks.plugin.interface"  # hatchling is in the environment of a build only
COMPILER = Path(__file__).with_name("compiler.sh")


@pytest.fixture
def compiled(tmp_path, monkeypatch, capfd):
    """Compile with ``COMPILER`` on a machine of two cores; return the builds."""
    started, folder = tmp_path / "started", tmp_path / "native"
    started.mkdir()
    folder.mkdir()
    (folder / "constants.py").write_text((library.FOLDER / "constants.py").read_text(encoding="utf-8"))
    interface = types.ModuleType(INTERFACE)
    interface.__dict__["BuildHookInterface"] = object
    monkeypatch.setitem(sys.modules, INTERFACE, interface)
    monkeypatch.setenv("STARTED", str(started))
    monkeypatch.setenv("CXX", str(COMPILER))
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    return runpy.run_path(str(HOOK))["_compiled"](folder)["builds"], capfd.readouterr().err


def test_builds_are_compiled_beside_each_other_and_one_that_fails_is_left_out(compiled):
    builds, said = compiled
    assert set(builds) == set(library.BUILDS) - {"amx"}
    assert "without its kernels for amx:\nunknown option" in said
    assert all(f"compiled the kernels for {name}" in said for name in builds)
