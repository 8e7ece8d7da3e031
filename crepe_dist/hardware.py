"""Hardware and installed packages of this machine. This module does not import MXNet or Horovod."""

import hashlib
import os
import platform
from pathlib import Path
from typing import Any

from crepe_dist.version import __version__

# Packages whose versions must be the same in all processes of a group, because the versions affect the results.
NUMERICAL_PACKAGES = ("mxnet", "mxnet-cu112", "horovod", "numpy", "nvidia-cuda-nvrtc-cu12")
PACKAGES = (*NUMERICAL_PACKAGES, "pandas", "pyyaml")
# Suffixes of the source files. A hash of these files identifies the version of the code.
SOURCE_SUFFIXES = (".py", ".cpp", ".h", ".cu", ".cuh")
SHARED_MEMORY = Path("/dev/shm")  # File system that contains shared memory.


def describe() -> dict[str, Any]:
    """Return a description of this machine for display: processor, cores, memory, system and versions."""
    return {
        "processor": processor(),
        "cores": num_cores(),
        "memory (GB)": round(memory() / 1e9, 1),
        "system": f"{platform.system()} {platform.release()}, {platform.libc_ver()[0]} {platform.libc_ver()[1]}",
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", ""),
        "Python": platform.python_version(),
        "crepe_dist": __version__,
        **versions(),
    }


def num_cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0))


def processor() -> str:
    """Return the model name of the processor."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def boot_id() -> str:
    """Return the random id that Linux generates at boot. It is the same in all containers on a machine."""
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()


def memory() -> int:
    """Return the size of the physical memory in bytes."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def group_versions() -> dict[str, str]:
    """Return the versions that must be equal in all processes of a group, and a hash of the sources of this package."""
    return {
        "Python": ".".join(platform.python_version_tuple()[:2]),
        "crepe_dist": __version__,
        "crepe_dist's sources, SHA-256": _sources_digest()[:16],
        **{name: version for name, version in versions().items() if name in NUMERICAL_PACKAGES},
    }


def _sources_digest() -> str:
    """Return the SHA-256 of the source files. The result may differ between two checkouts of the same version."""
    digest = hashlib.sha256()
    root = Path(__file__).parent
    for path in sorted(path for path in root.rglob("*") if path.suffix in SOURCE_SUFFIXES):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(root)} {len(content)}\n".encode() + content)
    return digest.hexdigest()


def versions() -> dict[str, str]:
    """Return the versions of the installed ``PACKAGES``."""
    from importlib import metadata  # Imported here because it is slow.

    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions
