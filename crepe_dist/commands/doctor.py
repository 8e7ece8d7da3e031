"""Command `doctor`, which describes this machine for a bug report."""

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec

from crepe_dist import hardware
from crepe_dist.cuda import compiler, driver, nccl
from crepe_dist.errors import escape_to_one_line
from crepe_dist.native import library
from crepe_dist.settings.flags import Command


@dataclass
class Doctor(Command):
    """Describe this machine for a bug report: versions, processor, kernels, GPUs, MPI and Horovod."""

    usage = """
        crepe doctor
        """

    def run(self) -> None:
        for name, text in describe_machine():
            print(f"{name:<13} {escape_to_one_line(text)}", flush=True)


def describe_machine() -> Iterator[tuple[str, str]]:
    """Yield the names and the texts of the lines."""
    yield "machine", ", ".join(f"{name} {value}" for name, value in hardware.describe().items() if value)
    build, trouble = library.find()
    yield "CPU kernels", "; ".join(filter(None, [build.name if build else "none", trouble]))
    yield from _describe_gpus()
    for name, module in (("MPI", "mpi4py"), ("Horovod", "horovod")):
        yield name, f"{module} {'found' if find_spec(module) else 'not found'}"


def _describe_gpus() -> Iterator[tuple[str, str]]:
    version = driver.driver_version()
    if version is None:
        error = driver.load_error()
        yield "GPU", f"none ({error.why})" if error else "none"
        return
    error = driver.init_error()
    yield "NVIDIA driver", f"for CUDA {driver.dotted(version)}" + (f"; {error.what}: {error.why}" if error else "")
    gpus = range(driver.gpu_count())
    if not error and not gpus:
        yield "GPU", f"none: {driver.no_gpu_error().why}"
    for gpu in gpus:
        capability = driver.dotted(driver.compute_capability(gpu))
        yield f"GPU {gpu}", f"{driver.gpu_name(gpu)}, compute capability {capability}"
    nvrtc = "not found" if compiler.missing() else driver.dotted(compiler.version())
    yield "CUDA kernels", f"NVRTC {nvrtc}, NCCL {nccl.version() or 'not found'}"
