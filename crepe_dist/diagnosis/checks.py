"""Checks of the machine and the installed software: one function for each line of the doctor's output."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

from crepe_dist import extras, machine, registry
from crepe_dist.cuda import compiler, driver, nccl
from crepe_dist.distributed import cuda, horovod_internals
from crepe_dist.distributed.device import CPU, Device
from crepe_dist.distributed.launch import has_mxnet
from crepe_dist.errors import UserError
from crepe_dist.files import scratch, write_text
from crepe_dist.model.precision import plan
from crepe_dist.model.shape import Shape
from crepe_dist.native import library
from crepe_dist.settings.options import SHORTEST, ModelOptions
from crepe_dist.supervising.training_process import LOG, QUIET, train
from crepe_dist.wording import size

INSTALL = "reinstall with `uv sync --inexact --group horovod` (without uv see docs/install.md)"
NOT_USED = "not used"  # of a GPU
SECONDS = 120  # for imports from a slow disk
# Imported in a process of its own: an incompatible library may crash or hang.
BUILDS = {
    "MXNet": "print(*[feature.name for feature in __import__('mxnet').runtime.feature_list() if feature.enabled])",
    "Horovod": "from crepe_dist.distributed import horovod_internals; print(*horovod_internals.built())",
}
IMPORT = "from crepe_dist.distributed.launch import Launch, import_mxnet; import_mxnet(Launch()); "
# Of the default network, measured on the sample with batches of 64: two states of 112 MB, and checkpoints of 19 MB.
RUN_BYTES = 300_000_000
GRADIENT_BYTES = 46_000_000  # of the paper's small network; those of Crepe are smaller
PROCESS_BYTES = 700_000_000
SMALL: dict[str, dict[str, Any]] = {
    "crepe": {"buckets": 1 << 14, "embeddings": 1 << 14},
    "paper": {"size": "tiny"},
}
TRIAL_SECONDS = 120.0  # enough for imports from a slow disk, and for a GPU to compile its first step
ROWS = 64
SETTINGS = {"data.source": "data", "data.batch_size": ROWS, "model.buckets": 4096, "model.embeddings": 1024}
PREPARE = ("-m", "crepe_dist", "prepare", "rows.csv", "--out=data", "--test=0.5")
COMPUTED = re.compile(r"\d+ process(?:es)?, .*")


class Check(NamedTuple):
    """Result of one check.

    Attributes:
        shows: what was found, or what is wrong.
        level: ``ok``; ``note`` if training works, but not as well as it could; ``problem`` if training does not work.
        remedy: instruction to the user, for a note or a problem.
    """

    name: str
    shows: str
    level: Literal["ok", "note", "problem"] = "ok"
    remedy: str = ""


def checks() -> Iterator[Check]:
    """Run all checks, in the order of their output."""
    yield Check("machine", ", ".join(f"{name} {value}" for name, value in machine.describe().items() if value))
    yield kernels()
    yield from gpus()
    yield from builds()
    yield memory()
    yield disk(Path())
    yield shared_memory(machine.SHARED_MEMORY)


def kernels() -> Check:
    """Check that there are compiled kernels for this processor."""
    found, trouble = library.find()
    remedy = "install a C++ compiler (g++), and reinstall"
    if found is not None:
        shows = str(plan(ModelOptions(), CPU, small_shape("crepe")))
        return Check("CPU kernels", shows, "note", remedy) if trouble else Check("CPU kernels", shows)
    return Check("CPU kernels", f"none: {trouble}", "problem", remedy)


def gpus() -> Iterator[Check]:
    """Check what computes on each GPU, and what GPUs need besides."""
    version = driver.driver_version()
    if version is None:
        yield Check("GPU", f"none ({error.why})" if (error := driver.missing()) else "none")
        return
    yield Check("NVIDIA driver", f"for CUDA {driver.dotted(version)}")
    for gpu in range(driver.count()):
        capability = driver.compute_capability(gpu)
        shows = f"{driver.name_of(gpu) or 'unknown'}, compute capability {driver.dotted(capability or (0, 0))}"
        try:
            planned = plan(ModelOptions(), Device("gpu", gpu), small_shape("crepe"))
        except UserError as error:
            yield Check(f"GPU {gpu}", f"{shows}; {NOT_USED}: {error.why or error.what}", "note", error.remedy)
            continue
        yield Check(f"GPU {gpu}", f"{shows}; {planned}")
    own = f"NVRTC {'not found' if compiler.missing() else driver.dotted(compiler.version())}"
    if driver.count() > 1 and not nccl.available():
        what = f"{own}; without NCCL, gradients of several GPUs pass through main memory, which is slower"
        yield Check("CUDA kernels", what, "note", extras.install("gpus"))
    else:
        yield Check("CUDA kernels", own)


def builds() -> Iterator[Check]:
    """Check MXNet and Horovod, which several processes need."""
    if error := cuda.missing():
        yield Check("MXNet", error.what, "problem", error.remedy)
        return
    if not has_mxnet():
        yield Check("MXNet", "not installed, and not needed for one process on the CPU")
    elif trouble := (mxnet := _build("MXNet"))[1]:
        yield Check("MXNet", f"cannot be imported: {trouble}", "problem", INSTALL)
        return
    else:
        known = {"MKLDNN": "oneDNN", "CUDA": "CUDA", "CUDNN": "cuDNN", "NCCL": "NCCL"}
        yield Check("MXNet", "built with " + ", ".join(name for key, name in known.items() if key in mxnet[0]))
    on_gpus = cuda.is_installed()
    if not horovod_internals.is_installed():
        remedy = horovod_internals.how_to_install(on_gpus)
        yield Check("Horovod", "not installed: only one process can train", "note", remedy)
        return
    built, trouble = _build("Horovod")
    if trouble:
        yield Check("Horovod", f"cannot be imported: {trouble}", "problem", INSTALL)
    elif "gloo" not in built:
        yield Check("Horovod", "built without Gloo", "problem", f"{INSTALL} --reinstall-package horovod")
    elif on_gpus and "nccl" not in built:
        what = "built without NCCL: MXNet's gradients on GPUs pass through main memory, which is slower"
        yield Check("Horovod", what, "note", horovod_internals.BUILD)
    else:
        yield Check("Horovod", f"built with {', '.join(built)}")


def _build(name: str) -> tuple[list[str], str]:
    """Return what MXNet or Horovod was built with, and why it cannot be imported, or ''."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", IMPORT + BUILDS[name]], capture_output=True, text=True, timeout=SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return [], f"no answer within {SECONDS} s"
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line and not line.startswith(" ")]  # no frames
        return [], said[-1] if said else f"exit code {done.returncode}"
    return done.stdout.split(), ""


def memory() -> Check:
    """Check the free memory."""
    free = machine.available_memory()
    shows = f"{size(free)} free"
    if free >= PROCESS_BYTES:
        return Check("memory", shows)
    return Check("memory", f"{shows}; the default network needs {size(PROCESS_BYTES)}", "note", "close other programs")


def disk(folder: Path) -> Check:
    """Check that the current folder is writable and has room for a run."""
    free = shutil.disk_usage(folder).free
    remedy = "free some space, change the permissions, or work in another folder"
    if trouble := _not_writable(folder):
        return Check("disk", f"this folder is not writable: {trouble}", "problem", remedy)
    if free < RUN_BYTES:
        return Check("disk", f"{size(free)} free; a run takes about {size(RUN_BYTES)}", "problem", remedy)
    return Check("disk", f"{size(free)} free")


def shared_memory(folder: Path) -> Check:
    """Check the file system in which the processes of a host sum their gradients."""
    trouble = _not_writable(folder)
    free = 0 if trouble else shutil.disk_usage(folder).free
    if free >= 2 * GRADIENT_BYTES:
        return Check(str(folder), f"{size(free)} free")
    what = f"{trouble or size(free) + ' free'}: several processes would sum gradients by Horovod, which is slower"
    return Check(str(folder), what, "note", "enlarge it: docker --shm-size=2g; or mount -o remount,size=2g /dev/shm")


def _not_writable(folder: Path) -> str:
    try:
        with tempfile.TemporaryFile(dir=folder) as stream:
            os.posix_fallocate(stream.fileno(), 0, 1 << 20)
    except OSError as error:
        return error.strerror or str(error)
    return ""


def small_shape(kind: str) -> Shape:
    """Return the shape of a network whose training step takes well under a second."""
    options = ModelOptions(network=kind, **SMALL[kind])
    shape: Shape = registry.shape(kind).for_data(options, 69, SHORTEST, 4, 1000)
    return shape


def trial(processes: int, device: str) -> str:
    """Train two steps in so many processes on this machine; return train's line about them.

    Raises:
        UserError: it failed.
    """
    with scratch() as folder:
        rows = [f"{'sunny,a warm' if row % 2 else 'rainy,a wet'} day number {row}" for row in range(2 * ROWS)]
        write_text(folder / "rows.csv", "\n".join(["label,text", *rows]) + "\n")
        done = subprocess.run([sys.executable, *PREPARE], cwd=folder, capture_output=True, text=True, check=False)
        if done.returncode:
            raise UserError("a few texts cannot be prepared", done.stderr.strip()[-1000:], "reinstall crepe_dist")
        settings = {**QUIET, **SETTINGS, "device": device, "training.epochs": 2, "run_dir": "run"}
        if not train(settings, folder, processes, TRIAL_SECONDS):
            why = f"not done within {TRIAL_SECONDS:g} s; its last line: {_log(folder).splitlines()[-1:]}"
            raise UserError("training a few texts hangs", why, "report this with the doctor's whole output")
        found = COMPUTED.search(_log(folder))
        return found[0] if found else "trained"


def _log(folder: Path) -> str:
    return (folder / LOG).read_text(encoding="utf-8", errors="replace")
