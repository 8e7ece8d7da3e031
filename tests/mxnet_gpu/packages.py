"""Empty packages like those of MXNet's GPU flavour, beside the emulator's driver."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from crepe_dist.distributed import cuda
from tests.helpers import cuda_emulator


def install(folder: Path) -> Path:
    """Make what `--group cu112` installs as far as ``cuda`` looks at it; return the folder, for PYTHONPATH."""
    for package in (cuda.FLAVOUR, *(package for package, _ in cuda.LIBRARIES.values())):
        facts = folder / f"{package.replace('-', '_')}-1.9.1.dist-info"
        facts.mkdir(parents=True)
        (facts / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.9.1\n")
    for name, (_, part) in cuda.LIBRARIES.items():
        path = folder / "nvidia" / part / "lib" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        # Compiled from standard input, so that nothing but the library is left.
        command = ["g++", "-shared", "-fPIC", f"-Wl,-soname,{name}", "-o", str(path), "-x", "c++", "-"]
        subprocess.run(command, input="", text=True, check=True)
    return folder


def environment(*sites: Path, **told: object) -> dict[str, str]:
    """Return the environment of a process with a GPU that finds these folders of packages first."""
    cuda_emulator.only_stand_ins("MXNet")
    found = cuda_emulator.environment(**told)
    return {**found, "PYTHONPATH": os.pathsep.join([*map(str, sites), found["PYTHONPATH"]])}
