"""A fake libcuda.so.1 that answers questions only, and empty packages like those of MXNet's GPU flavour."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from crepe_dist.cuda import driver as nvidia
from crepe_dist.distributed import cuda
from tests.helpers.needs import which

SOURCE = (Path(__file__).parent / "cuda_emulator" / "questions.h").read_text(encoding="utf-8")


def library(path: Path, source: str = "") -> None:
    if which("gcc") is None:
        pytest.skip("needs gcc")
    path.parent.mkdir(parents=True, exist_ok=True)
    # Compiled from standard input, so that nothing but the library is left.
    command = ["gcc", "-shared", "-fPIC", f"-Wl,-soname,{path.name}", "-o", str(path), "-x", "c", "-"]
    subprocess.run(command, input=source, text=True, check=True)


def driver(folder: Path) -> Path:
    """The folder, with the driver's library in it, for LD_LIBRARY_PATH."""
    library(folder / nvidia.LIBRARY, SOURCE)
    return folder


def packages(folder: Path) -> Path:
    """The folder, with what `--group cu112` installs as far as ``cuda`` looks at it, for PYTHONPATH."""
    for package in (cuda.FLAVOUR, *(package for package, _ in cuda.LIBRARIES.values())):
        facts = folder / f"{package.replace('-', '_')}-1.9.1.dist-info"
        facts.mkdir(parents=True)
        (facts / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.9.1\n")
    for name, (_, part) in cuda.LIBRARIES.items():
        library(folder / "nvidia" / part / "lib" / name)
    return folder


def environment(libraries: Path | None = None, site: Path | None = None, **told: object) -> dict[str, str]:
    """Return the environment of a process that finds them; ``told``: the driver's answers, as in ``SOURCE``."""
    root = str(Path(__file__).resolve().parents[2])
    return {
        **os.environ,
        "LD_LIBRARY_PATH": str(libraries or ""),
        "PYTHONPATH": os.pathsep.join([str(site), root] if site else [root]),
        "DRIVER_GPUS": "1",
        **{name: str(value) for name, value in told.items()},
    }
