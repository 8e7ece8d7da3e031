"""Hardware, limits and installed packages of this machine. Imports neither MXNet nor Horovod."""

from __future__ import annotations

import hashlib
import os
import platform
from pathlib import Path
from typing import Any

from crepe_dist.version import __version__

NUMERICAL_PACKAGES = ("mxnet", "mxnet-cu112", "horovod", "numpy", "nvidia-cuda-nvrtc-cu12")
PACKAGES = (*NUMERICAL_PACKAGES, "pandas", "pyyaml")
SOURCE_SUFFIXES = (".py", ".cpp", ".h", ".cu", ".cuh")
MEMBERSHIP = Path("/proc/self/cgroup")
SHARED_MEMORY = Path("/dev/shm")
CONTROL_GROUPS = Path("/sys/fs/cgroup")


def describe() -> dict[str, Any]:
    """Return facts for display, in order: processor, cores, memory in GB, system, versions."""
    return {
        "processor": processor(),
        "cores": cores(),
        "memory (GB)": round(memory() / 1e9, 1),
        "system": f"{platform.system()} {platform.release()}, {platform.libc_ver()[0]} {platform.libc_ver()[1]}",
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", ""),
        "Python": platform.python_version(),
        "crepe_dist": __version__,
        **versions(),
    }


def cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0))


def processor() -> str:
    """Return the processor's model name."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def memory() -> int:
    """Return the machine's main memory in bytes."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def available_memory() -> int:
    """Return the bytes that this process can still allocate, limited by the machine and by its control groups."""
    meminfo = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    left = [next((int(line.split()[1]) << 10 for line in meminfo if line.startswith("MemAvailable:")), memory())]
    for folder in _control_groups():
        for limit, usage, cache in (
            ("memory.max", "memory.current", "inactive_file"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        ):
            try:
                most, used = (int((folder / name).read_text(encoding="ascii")) for name in (limit, usage))
                counts = dict(map(str.split, (folder / "memory.stat").read_text(encoding="ascii").splitlines()))
            except (OSError, ValueError):  # the other cgroup version, or "max"
                continue
            left.append(most - used + int(counts.get(cache, 0)))  # the kernel can drop cached file pages
    return max(0, min(left))


def _control_groups() -> list[Path]:
    """Return the folders of this process's control groups of memory (cgroup v1 and v2), innermost first."""
    folders = []
    for line in MEMBERSHIP.read_text(encoding="utf-8").splitlines() if MEMBERSHIP.exists() else ():
        _, controllers, path = line.split(":", 2)
        if not controllers or "memory" in controllers.split(","):
            root = CONTROL_GROUPS / ("memory" if controllers else "")
            group = root / path.lstrip("/")
            folders += [folder for folder in (group, *group.parents) if folder == root or root in folder.parents]
    return folders


def group_versions() -> dict[str, str]:
    """Return the versions that all processes of a group must share, and a hash of the package's own sources."""
    return {
        "Python": ".".join(platform.python_version_tuple()[:2]),
        "crepe_dist": __version__,
        "crepe_dist's sources, SHA-256": _sources_digest()[:16],
        **{name: version for name, version in versions().items() if name in NUMERICAL_PACKAGES},
    }


def _sources_digest() -> str:
    """Hash the package's source files: two checkouts of one version may differ."""
    digest = hashlib.sha256()
    root = Path(__file__).parent
    for path in sorted(path for path in root.rglob("*") if path.suffix in SOURCE_SUFFIXES):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(root)} {len(content)}\n".encode() + content)
    return digest.hexdigest()


def versions() -> dict[str, str]:
    """Return the versions of the installed ``PACKAGES``."""
    from importlib import metadata  # it takes longer than all else that this module imports

    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions
