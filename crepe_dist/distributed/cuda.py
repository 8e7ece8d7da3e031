"""Requirements of MXNet's GPU flavour: CUDA's libraries, the NVIDIA driver, and a supported GPU.

The wheel does not contain CUDA. The packages nvidia-*-cu11 do, in folders that the dynamic loader does not search. The
loader finds a library by name once a process has loaded it, so they are loaded before MXNet.
This module imports neither MXNet nor Horovod.
"""

from __future__ import annotations

import ctypes
import os
from functools import cache
from pathlib import Path

from crepe_dist.cuda import driver
from crepe_dist.errors import UserError

FLAVOUR = "mxnet-cu112"
INSTALL = "install it again as docs/install.md says: `uv sync --group cu112`"
WITHOUT = "or train without it: --device cpu"
NVRTC = "libnvrtc.so.11.2"
# Libraries that the flavour's libmxnet.so needs (readelf -d), each with its package and the package's folder.
LIBRARIES = {
    "libcublas.so.11": ("nvidia-cublas-cu11", "cublas"),
    "libcudart.so.11.0": ("nvidia-cuda-runtime-cu11", "cuda_runtime"),
    "libcudnn.so.8": ("nvidia-cudnn-cu11", "cudnn"),
    "libcufft.so.10": ("nvidia-cufft-cu11", "cufft"),
    "libcurand.so.10": ("nvidia-curand-cu11", "curand"),
    "libcusolver.so.11": ("nvidia-cusolver-cu11", "cusolver"),
    "libnccl.so.2": ("nvidia-nccl-cu11", "nccl"),
    "libnvToolsExt.so.1": ("nvidia-nvtx-cu11", "nvtx"),
    NVRTC: ("nvidia-cuda-nvrtc-cu11", "cuda_nvrtc"),
}
# cuDNN 8.9 and cuBLAS 11 open this name in the middle of a run, and abort the process without it. No package has it.
UNVERSIONED = "libnvrtc.so"
# Lowest CUDA version of the driver. 11.0 (450.80.02) runs all of CUDA 11: NVIDIA's "CUDA Compatibility", table 1.
OLDEST_DRIVER = (11, 0)
# Compute capabilities of the machine code in the libmxnet.so of PyPI's wheel of the flavour: 198 pieces each, and no
# PTX, which later GPUs could translate. Code runs on GPUs of the same major number and the same or a higher minor one:
# NVIDIA's "Ada GPU Architecture Compatibility Guide", 1.2. Other builds of MXNet have code for other GPUs.
CODE = ((5, 0), (6, 0), (7, 0), (8, 0), (8, 6))
# That library's place in the wheel and its SHA-256, as the wheel's RECORD has them.
LIBMXNET, LIBMXNET_SHA256 = "mxnet/libmxnet.so", "BpjqHlqchxwXSxEGzoQVySrMdbZR6_D-GFOUjjmEqu0"


@cache
def is_installed() -> bool:
    """Return whether MXNet's GPU flavour is installed."""
    from importlib import metadata  # here: predictions start faster without it

    try:
        metadata.version(FLAVOUR)
    except metadata.PackageNotFoundError:
        return False
    return True


def is_pypi_wheel(libmxnet: Path) -> bool:
    """Return whether MXNet's library is that of PyPI's wheel of the GPU flavour, which ``CODE`` describes.

    NVIDIA's container and builds of one's own are not. Their list of GPUs is not known here.
    """
    from importlib import metadata

    try:
        files = metadata.files(FLAVOUR) or []
    except metadata.PackageNotFoundError:
        return False
    own = next((file for file in files if file.as_posix() == LIBMXNET), None)
    if own is None or own.hash is None or own.hash.value != LIBMXNET_SHA256:
        return False
    return Path(str(own.locate())).resolve() == libmxnet.resolve()


def load() -> None:
    """Load the libraries that the GPU flavour needs; do nothing if it is not installed.

    With a driver older than NVRTC, MXNet is told not to fuse operators (MXNET_USE_FUSION, unless it is set).

    Raises:
        UserError: libraries are missing; it names each of them.
    """
    if error := missing(troubles()):
        raise error
    compiler = _compiler_version()
    supported = driver.driver_version() if compiler else None
    if compiler and supported and supported < compiler:
        # MXNet compiles fused operators to PTX at run time (src/operator/fusion/fused_op.cu), and a driver translates
        # the PTX of its own CUDA version and older ones: NVIDIA's "CUDA Compatibility", minor version compatibility.
        os.environ.setdefault("MXNET_USE_FUSION", "0")


@cache
def troubles() -> dict[str, str]:
    """Load the driver's library and each of ``LIBRARIES``, from its package or else from the system.

    Returns:
        The reasons by name of each library that cannot be loaded; empty if the GPU flavour is not installed.
    """
    reasons = {}
    for library in [*LIBRARIES, driver.LIBRARY] if is_installed() else ():
        try:
            ctypes.CDLL(_path(library))
        except OSError as error:
            reasons[library] = str(error)
    return reasons


def _compiler_version() -> tuple[int, int] | None:
    """Return the CUDA version of NVRTC; ``None`` if the GPU flavour is not installed."""
    if not is_installed():
        return None
    major, minor = ctypes.c_int(), ctypes.c_int()
    try:
        failed = ctypes.CDLL(NVRTC).nvrtcVersion(ctypes.byref(major), ctypes.byref(minor))
    except (OSError, AttributeError):
        return None
    return None if failed else (major.value, minor.value)


def _path(library: str) -> str:
    from importlib import metadata

    package, folder = LIBRARIES.get(library, ("", ""))
    if package:
        try:
            return str(metadata.distribution(package).locate_file(f"nvidia/{folder}/lib/{library}"))
        except metadata.PackageNotFoundError:
            pass
    return library


def missing(troubles: dict[str, str]) -> UserError | None:
    """Return the error for the result of ``troubles``; ``None`` if it is empty."""
    if not troubles:
        return None
    libraries = [library for library in troubles if library != driver.LIBRARY]
    named = [f"{library} (package {LIBRARIES[library][0]})" for library in libraries]
    whose = ["the NVIDIA driver's libcuda.so.1"] if driver.LIBRARY in troubles else []
    remedies = []
    if libraries:
        remedies.append(INSTALL)
    if driver.LIBRARY in troubles:
        remedies.append(
            "install the NVIDIA driver 450.80.02 or later, which is not a Python package (a container uses the host's: "
            "NVIDIA Container Toolkit, docker run --gpus all), or MXNet's CPU flavour: `uv sync --group horovod`"
        )
    return UserError(
        f"MXNet's GPU flavour cannot be loaded without {', '.join([*named, *whose])}",
        "; ".join(troubles.values()),
        "; ".join(remedies),
    )


def unlinked() -> UserError | None:
    """Return the error if the name ``UNVERSIONED`` leads nowhere; ``None`` if it is found, or the flavour missing."""
    if not is_installed():
        return None
    try:
        ctypes.CDLL(UNVERSIONED)
    except OSError as error:
        what = f"MXNet's GPU flavour needs {UNVERSIONED}, which its packages do not have"
        return UserError(what, str(error), f"link it to {_path(NVRTC)} in a folder on LD_LIBRARY_PATH, {WITHOUT}")
    return None


def outdated(supported: tuple[int, int] | None) -> UserError | None:
    """Return the error for a driver that is too old for the GPU flavour; ``None`` if it is not."""
    if supported is None or supported >= OLDEST_DRIVER:
        return None
    return UserError(
        f"the NVIDIA driver is too old: it is for CUDA {driver.dotted(supported)}",
        "MXNet's GPU flavour is for CUDA 11",
        f"install the driver 450.80.02 or later, {WITHOUT}",
    )


def has_code_for(capability: tuple[int, int]) -> bool:
    """Return whether PyPI's wheel of the GPU flavour runs on GPUs of that compute capability."""
    return any(capability[0] == major and capability[1] >= minor for major, minor in CODE)


def refusal(gpu: int, name: str, capability: tuple[int, int] | None) -> UserError | None:
    """Return the error for a GPU that PyPI's wheel of the GPU flavour does not support.

    Returns:
        ``None`` if the wheel supports it, or its capability is unknown.
    """
    if capability is None or has_code_for(capability):
        return None
    return UserError(
        f"MXNet cannot compute on GPU {gpu} ({name or 'unknown'}): it has no code for compute capability "
        f"{driver.dotted(capability)}",
        f"its wheel on PyPI was compiled for {', '.join(map(driver.dotted, CODE))}, which also run on the later GPUs "
        "of these generations (up to 8.9, Ada), but not on Hopper (9.0), Blackwell (10.0, 12.0) or later ones",
        f"choose another GPU with CUDA_VISIBLE_DEVICES, {WITHOUT}; for Hopper there is another MXNet: docs/install.md",
    )
