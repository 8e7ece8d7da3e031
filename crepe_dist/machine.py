"""What this machine is, and what is installed on it. Imports neither MXNet nor Horovod."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

from crepe_dist import __version__

PACKAGES = ("mxnet", "mxnet-cu112", "horovod", "numpy", "pandas", "pyyaml")


def describe() -> dict[str, Any]:
    """Names and plain values in the order in which they are shown: processor, cores, memory in GB, system, versions."""
    return {
        "processor": processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory (GB)": round(memory() / 1e9, 1),
        "system": f"{platform.system()} {platform.release()}, {platform.libc_ver()[0]} {platform.libc_ver()[1]}",
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", ""),
        "Python": platform.python_version(),
        "crepe_dist": __version__,
        **versions(),
    }


def processor() -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def memory() -> int:
    """Bytes of main memory that the machine has."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def versions() -> dict[str, str]:
    """Of those ``PACKAGES`` that are installed."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
