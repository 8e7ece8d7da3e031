"""Loader of the libraries that the GPU build of MXNet needs: CUDA's libraries and the NVIDIA driver.

The wheel of MXNet does not contain CUDA's libraries. The packages nvidia-*-cu11 contain them, in folders that the
dynamic loader does not search. But the loader uses a library with the right name if the process has already loaded it.
This module therefore loads CUDA's libraries before MXNet is imported. It does not import MXNet or Horovod.
"""

from functools import cache

from crepe_dist import hardware
from crepe_dist.cuda import driver
from crepe_dist.cuda.compiler import load_from_package
from crepe_dist.errors import UserError

GPU_PACKAGE = "mxnet-cu112"
HOROVOD_BUILD_HINT = "build Horovod with nvcc and HOROVOD_GPU_OPERATIONS=NCCL, as docs/install.md says"
# Libraries that libmxnet.so of the GPU build needs (readelf -d). For each library: the name of its package, and the
# folder of the library in this package.
LIBRARIES = {
    "libcublas.so.11": ("nvidia-cublas-cu11", "cublas"),
    "libcudart.so.11.0": ("nvidia-cuda-runtime-cu11", "cuda_runtime"),
    "libcudnn.so.8": ("nvidia-cudnn-cu11", "cudnn"),
    "libcufft.so.10": ("nvidia-cufft-cu11", "cufft"),
    "libcurand.so.10": ("nvidia-curand-cu11", "curand"),
    "libcusolver.so.11": ("nvidia-cusolver-cu11", "cusolver"),
    "libnccl.so.2": ("nvidia-nccl-cu11", "nccl"),
    "libnvToolsExt.so.1": ("nvidia-nvtx-cu11", "nvtx"),
    "libnvrtc.so.11.2": ("nvidia-cuda-nvrtc-cu11", "cuda_nvrtc"),
}


@cache
def is_installed() -> bool:
    """Return whether the GPU build of MXNet is installed."""
    return GPU_PACKAGE in hardware.versions()


@cache
def load_error() -> UserError | None:
    """Load the libraries that the GPU build of MXNet needs.

    Returns:
        An error that names the driver or the libraries that cannot be loaded. ``None`` if all libraries were loaded, or
        if the GPU build is not installed.
    """
    if not is_installed():
        return None
    if error := driver.load_error():
        return UserError(f"the GPU build of MXNet cannot be loaded: {error.what}", error.why, error.remedy)
    reasons = {}
    for library, (package, folder) in LIBRARIES.items():
        try:
            load_from_package(package, f"nvidia/{folder}/lib/{library}")
        except OSError as error:
            reasons[f"{library} (package {package})"] = str(error)
    if not reasons:
        return None
    return UserError(
        f"the GPU build of MXNet cannot be loaded without {', '.join(reasons)}",
        "; ".join(reasons.values()),
        "reinstall it as described in docs/install.md: `uv sync --extra gpu --group cu112`",
    )
