"""Stand-ins for the NVIDIA driver and NCCL, which interpret on the processor what NVRTC compiles.

They have NVIDIA's names. A process finds them through ``environment``, this one within ``used``. With the environment
variable ``SWITCH``, both leave the machine's own in place, and a test that only a stand-in can answer is skipped.

Environment of the driver:
    DRIVER_GPUS: number of GPUs of the machine. The default is 0, and 1 with the functions below. A process sees the
        GPUs in CUDA_VISIBLE_DEVICES, which are given by number or by UUID.
    DRIVER_CAPABILITY: compute capability (8.8). One that NVRTC does not know, so that it makes PTX.
    DRIVER_VERSION: CUDA version (12040).
    DRIVER_MEMORY: bytes of each GPU's memory.
    DRIVER_TAKEN: bytes of it that another process uses (0).
    DRIVER_COMPUTE_MODE: compute mode of the GPUs (0: any number of processes; 3: one process).
    DRIVER_FAILS: result of cuInit.
    DRIVER_SLICES: the GPUs are slices of one (MIG), which NCCL refuses.
    DRIVER_MACHINE: name of the machine. The UUID of a GPU is made from this name and the number of the GPU.
    EMULATOR_FAILS: results of functions, such as ``cuMemAlloc_v2=2@3``: out of memory at the third call.
    EMULATOR_COUNTS: ``emulatorCounts`` tells the bytes and sectors of a GPU's memory that the kernels touched, too.
    EMULATOR_RACES: races in a GPU's memory end a launch, too, which then takes four times as long.
    EMULATOR_NCCL_VERSION: version of NCCL (22602).
    EMULATOR_NCCL_FAILS: result of the start of a communicator, such as 2: no space in /dev/shm.
    EMULATOR_NCCL_STUCK: NCCL never ends a communicator.
    EMULATOR_NCCL_DEAF: NCCL does not notice that a peer is gone; its kernel waits for ever (0) or fails with this code,
        or NCCL itself does (a negative one).
"""

import ctypes
import fcntl
import hashlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from unittest import mock

from crepe_dist.cuda import driver, nccl

SWITCH = "CREPE_DIST_TEST_GPU"  # With the value "real", the tests run on the GPUs of this machine.
FOLDER = Path(__file__).parent
LIBRARIES = {"libcuda.so.1": ("libcuda.cpp", "ptx.cpp"), "libnccl.so.2": ("libnccl.cpp",)}
FLAGS = ["-std=c++17", "-O3", "-march=native", "-ffp-contract=off", "-fwrapv", "-Wall", "-Wextra", "-shared", "-fPIC"]
FLAGS += ["-fvisibility=hidden", "-pthread"]


def build() -> Path:
    """Compile the stand-ins once for each version of their sources. Return their folder, for LD_LIBRARY_PATH."""
    sources = [path for path in sorted(FOLDER.iterdir()) if path.suffix in (".cpp", ".h")]
    text = b"".join(path.read_bytes() for path in sources)
    name = hashlib.sha256(text + str(FOLDER).encode()).hexdigest()[:16]
    folder = Path(tempfile.gettempdir()) / f"cuda-emulator-{os.getuid()}" / name
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:  # Compiling takes 20 seconds, so only one of the parallel tests does it.
        fcntl.flock(lock, fcntl.LOCK_EX)
        for library, parts in LIBRARIES.items():
            if (folder / library).exists():
                continue
            made = folder / f"{library}.{os.getpid()}"
            flags = [*FLAGS, f"-Wl,-soname,{library}", "-o", str(made), *(str(FOLDER / part) for part in parts)]
            other = [f"-L{folder}", "-l:libcuda.so.1"] if library == "libnccl.so.2" else []
            subprocess.run(["g++", *flags, *other], check=True)
            made.replace(folder / library)
    facts = folder / "site" / f"{nccl.PACKAGE.replace('-', '_')}-12.99.dist-info" / "METADATA"
    facts.parent.mkdir(parents=True, exist_ok=True)
    facts.write_text(f"Metadata-Version: 2.1\nName: {nccl.PACKAGE}\nVersion: 12.99\n")
    link = folder / "site" / nccl.PATH
    link.parent.mkdir(parents=True, exist_ok=True)
    with suppress(FileExistsError):
        link.symlink_to(folder / link.name)
    return folder


def is_real() -> bool:
    """Return whether the tests run on the GPUs of this machine."""
    found = os.environ.get(SWITCH, "")
    assert found in ("", "real"), f"{SWITCH} is {found}, and must be real or unset"
    return bool(found)


def only_stand_ins(*answers: str) -> None:
    """Skip the test on real GPUs, because only a stand-in can give these answers."""
    if is_real():
        import pytest  # Imported here, because benchmarks/gpu.py also uses this module where pytest is not installed.

        pytest.skip(f"only a stand-in can be told {', '.join(answers)}")


def _need_gpus(wanted: int) -> None:
    """Fail the test if the machine has no driver. Skip the test if the machine has fewer GPUs than ``wanted``."""
    import pytest

    if error := driver.load_error():
        pytest.fail(f"{SWITCH} is real, but {error.what}: {error.why}", pytrace=False)
    if (found := driver.gpu_count()) < wanted:
        pytest.skip(f"needs {wanted} GPUs, and there are {found}")


def environment(*folders: Path, **told: object) -> dict[str, str]:
    """Return the environment of a process that uses the stand-ins. Skip the test if real GPUs cannot answer so.

    Args:
        folders: First folders of PYTHONPATH.
    """
    root = FOLDER.parents[2]
    if is_real():
        if others := [name for name, value in told.items() if name != "DRIVER_GPUS" or not value]:
            only_stand_ins(*others)
        _need_gpus(int(str(told.get("DRIVER_GPUS", 1))))
        given = filter(None, [os.environ.get("PYTHONPATH")])
        return {**os.environ, "PYTHONPATH": ":".join(map(str, (*folders, root, *given)))}
    folder = build()
    paths = {"LD_LIBRARY_PATH": str(folder), "PYTHONPATH": ":".join(map(str, (*folders, folder / "site", root)))}
    return {**os.environ, **paths, **_answers(folder), **{name: str(value) for name, value in told.items()}}


def _answers(folder: Path) -> dict[str, str]:
    return {"DRIVER_GPUS": "1", "XDG_CACHE_HOME": str(folder / "cache")}


@contextmanager
def for_processes(*folders: Path, **told: object) -> Iterator[None]:
    """Make processes that are started within the block use the stand-ins. See ``environment``."""
    with mock.patch.dict(os.environ, environment(*folders, **told)):
        yield


@contextmanager
def used(**told: object) -> Iterator[None]:
    """Make this process use the stand-ins, by loading them: a loaded library is found by its name.

    The libraries stay loaded, but after the block the driver reports no GPU.
    """
    if is_real():
        _need_gpus(1)
        yield
        return
    folder = build()
    for library in LIBRARIES:
        ctypes.CDLL(str(folder / library))
    answers = {name: str(value) for name, value in {**_answers(folder), **told}.items()}
    with mock.patch.dict(os.environ, answers), mock.patch.object(sys, "path", [str(folder / "site"), *sys.path]):
        yield
