"""PyPI's GPU wheel of MXNet, unpacked, with stand-ins for the libraries of CUDA that it needs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from crepe_dist.cuda import driver as nvidia
from crepe_dist.distributed import cuda
from tests.helpers import cuda_driver

SOURCE = Path(__file__).with_name("stand_in.c")
WHEELS = (f"{cuda.FLAVOUR}==1.9.1", "nvidia-cuda-nvrtc-cu11==11.8.89")
LIBRARY = "libstandin.so"
OF_CUDA = re.compile(r"(__cuda|cuda|cudnn|cublas|cusolver|cufft|curand|nvtx|nccl|cu[A-Z])")
CREATES = re.compile(r"(cudnn|cublas|cusolverDn)Create|curandCreateGenerator")
ALGORITHMS = re.compile(r"cudnn(Get|Find)Convolution\w+Algorithm(_v7)?")
MOST_ALGORITHMS = re.compile(r"cudnnGetConvolution\w+AlgorithmMaxCount")
WORKSPACE = re.compile(r"cudnnGetConvolution\w+WorkspaceSize")


def unpack(folder: Path) -> Path:
    """Unpack the wheel and NVRTC's, from uv's cache if they are there; the folder is for PYTHONPATH."""
    target = ["--target", str(folder), "--python", sys.executable]
    subprocess.run(["uv", "pip", "install", "--quiet", "--no-deps", *target, *WHEELS], check=True)
    return folder


def build(folder: Path, site: Path) -> Path:
    """Compile the stand-in, under the names of all libraries that the wheel needs but NVRTC, for LD_LIBRARY_PATH."""
    source = "\n".join([cuda_driver.SOURCE, SOURCE.read_text(encoding="utf-8")])
    listed = subprocess.run(
        ["nm", "--dynamic", "--undefined-only", site / cuda.LIBMXNET], stdout=-1, text=True, check=True
    ).stdout
    wanted = {line.split()[-1].partition("@")[0] for line in listed.splitlines()}
    missing = (name for name in sorted(wanted) if OF_CUDA.match(name) and not re.search(rf"\b{name}\(", source))
    cuda_driver.library(folder / LIBRARY, "\n".join([source, *map(_function, missing)]))
    for name in {*cuda.LIBRARIES, nvidia.LIBRARY} - {cuda.NVRTC}:
        (folder / name).symlink_to(LIBRARY)
    (folder / cuda.UNVERSIONED).symlink_to(site / "nvidia" / "cuda_nvrtc" / "lib" / cuda.NVRTC)
    return folder


def _function(name: str) -> str:
    """Return C source for a function that counts its calls, and succeeds."""
    if name.startswith("cuda"):
        return f'int {name}(void) {{ count("{name}"); return NOT_SUPPORTED; }}'
    if CREATES.match(name):
        return f'int {name}(void **made) {{ count("{name}"); return handle(made); }}'
    if ALGORITHMS.fullmatch(name):
        head = "void *h, void *a, void *b, void *c, void *d, int wanted, int *found, Performance *results"
        return f'int {name}({head}) {{ count("{name}"); return algorithms(found, results); }}'
    if MOST_ALGORITHMS.fullmatch(name):
        return f"int {name}(void *h, int *most) {{ *most = 2; return SUCCESS; }}"
    if WORKSPACE.fullmatch(name):
        head = "void *h, void *a, void *b, void *c, void *d, int algorithm, size_t *bytes"
        return f"int {name}({head}) {{ *bytes = 1 << 20; return SUCCESS; }}"
    return f'int {name}(void) {{ count("{name}"); return SUCCESS; }}'


def environment(libraries: Path, site: Path, **told: object) -> dict[str, str]:
    """Return the environment of a process that uses them; ``told``: what ``cuda_driver.SOURCE`` answers."""
    known = {"DRIVER_CAPABILITY": "8.0", "MXNET_CUDNN_LIB_CHECKING": "0", **told}
    return {**cuda_driver.environment(libraries, site, **known), "PATH": os.environ["PATH"]}


def counts(path: Path) -> dict[str, int]:
    """Return the calls by name that processes with this COUNTS have written."""
    found: dict[str, int] = {}
    for file in path.parent.glob(f"{path.name}.*"):
        for line in file.read_text(encoding="utf-8").splitlines():
            number, _, name = line.partition("\t")
            found[name] = found.get(name, 0) + int(number)
    return found
