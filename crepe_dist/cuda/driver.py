"""Interface to the NVIDIA driver: signatures of its functions, and queries that need no CUDA context.

The signatures come from cuda.h in CUDA 12.8. Some functions have a version in their name, such as ``cuMemAlloc_v2``. In
C, the header's macros map the plain name to this version. The library's function with the plain name is an old version
for programs that were compiled before CUDA 3.2 or 4.0.
"""

import ctypes
import os
import uuid
from ctypes import POINTER, c_char_p, c_float, c_int, c_size_t, c_ubyte, c_uint, c_uint64, c_void_p
from functools import cache
from typing import Any

from crepe_dist import hardware
from crepe_dist.errors import ExitCode, UserError

LIBRARY = "libcuda.so.1"
# Minimum CUDA version of the driver, and the version number of the first driver with this CUDA version. A driver for
# CUDA 12.0 runs code that was compiled with any version of CUDA 12 (NVIDIA, "CUDA Compatibility").
MIN_VERSION, MIN_VERSION_NAME = (12, 0), "525.60.13"
FALLBACK_HINT = "or compute without it: --device cpu"
NO_DEVICE = 100  # CUDA_ERROR_NO_DEVICE
_IMAGE = (
    "this driver cannot load the compiled kernels",
    "install a newer NVIDIA driver, or remove the cache of compiled kernels (~/.cache/crepe_dist/cuda), "
    f"{FALLBACK_HINT}",
)
# Causes and remedies by CUDA error code. All other codes indicate a bug or a hardware fault. Among them are the codes
# 700 to 719 for errors in kernels.
ERROR_HELP = {
    3: ("the process was forked from one that uses the GPU", "report it"),
    46: (
        "another process has exclusive use of the GPU (compute mode EXCLUSIVE_PROCESS), or the GPU has failed",
        "end the other process (nvidia-smi shows it), choose another GPU (CUDA_VISIBLE_DEVICES=1), or allow multiple "
        f"processes: nvidia-smi -c DEFAULT, {FALLBACK_HINT}",
    ),
    NO_DEVICE: ("the driver finds no GPU", f"check nvidia-smi and CUDA_VISIBLE_DEVICES, {FALLBACK_HINT}"),
    217: (
        "the GPUs cannot access each other's memory (peer access)",
        "set NCCL_P2P_DISABLE=1, so that NCCL copies through main memory",
    ),
    **dict.fromkeys((200, 209, 218, 221, 222), _IMAGE),  # Errors of machine code, PTX, and the driver's PTX compiler.
    802: ("the GPUs are not ready yet", "start NVIDIA's fabric manager: systemctl start nvidia-fabricmanager"),
    803: (
        "the driver was updated, so its library does not match the loaded kernel module",
        f"restart the machine, {FALLBACK_HINT}",
    ),
}
_FAULT = (
    "a fault of the GPU, its connection or its driver, or a bug",
    "read what nvidia-smi says, and Xid in the kernel's log (dmesg), and run the same command again; if it happens "
    "again, report it",
)
# Codes of errors that persist until the user fixes their cause. After other errors, the same command may succeed when
# it is run again.
PERMANENT_ERRORS = ERROR_HELP.keys() - {46, 802}
_INT = POINTER(c_int)
_HANDLE = POINTER(c_void_p)
_ADDRESS = c_uint64  # CUdeviceptr
# Argument types of the driver's functions. All drivers for CUDA 12 have these functions. Each returns a CUresult.
FUNCTIONS: dict[str, tuple[Any, ...]] = {
    "cuInit": (c_uint,),
    "cuDriverGetVersion": (_INT,),
    "cuGetErrorName": (c_int, POINTER(c_char_p)),
    "cuDeviceGetCount": (_INT,),
    "cuDeviceGet": (_INT, c_int),
    "cuDeviceGetName": (c_char_p, c_int, c_int),
    "cuDeviceGetPCIBusId": (c_char_p, c_int, c_int),
    "cuDeviceGetUuid_v2": (c_char_p, c_int),
    "cuDeviceGetAttribute": (_INT, c_int, c_int),
    "cuDevicePrimaryCtxRetain": (_HANDLE, c_int),
    "cuDevicePrimaryCtxRelease_v2": (c_int,),
    "cuCtxSetCurrent": (c_void_p,),
    "cuMemGetInfo_v2": (POINTER(c_size_t), POINTER(c_size_t)),
    "cuMemAlloc_v2": (POINTER(_ADDRESS), c_size_t),
    "cuMemFree_v2": (_ADDRESS,),
    "cuMemHostAlloc": (_HANDLE, c_size_t, c_uint),
    "cuMemFreeHost": (c_void_p,),
    "cuMemcpyHtoDAsync_v2": (_ADDRESS, c_void_p, c_size_t, c_void_p),
    "cuMemcpyDtoHAsync_v2": (c_void_p, _ADDRESS, c_size_t, c_void_p),
    "cuMemsetD8Async": (_ADDRESS, c_ubyte, c_size_t, c_void_p),
    "cuStreamCreate": (_HANDLE, c_uint),
    "cuStreamDestroy_v2": (c_void_p,),
    "cuStreamSynchronize": (c_void_p,),
    "cuStreamQuery": (c_void_p,),
    "cuEventCreate": (_HANDLE, c_uint),
    "cuEventRecord": (c_void_p, c_void_p),
    "cuEventElapsedTime": (POINTER(c_float), c_void_p, c_void_p),
    "cuModuleLoadData": (_HANDLE, c_void_p),
    "cuModuleUnload": (c_void_p,),
    "cuModuleGetFunction": (_HANDLE, c_void_p, c_char_p),
    "cuLaunchKernel": (c_void_p, *[c_uint] * 7, c_void_p, _HANDLE, _HANDLE),
}
# CUdevice_attribute
COMPUTE_MODE = 20  # CUcomputemode: 0 if any number of processes may use the GPU.
COMPUTE_CAPABILITY_MAJOR, COMPUTE_CAPABILITY_MINOR = 75, 76


@cache
def function(name: str) -> Any:
    """Return a function of the driver.

    Raises:
        OSError: No driver is installed.
        AttributeError: The driver does not have the function, because it is too old.
    """
    found = getattr(ctypes.CDLL(LIBRARY), name)
    found.argtypes, found.restype = FUNCTIONS[name], c_int
    return found


def load_error() -> UserError | None:
    """Return an error if the driver's library cannot be loaded, and ``None`` otherwise."""
    try:
        ctypes.CDLL(LIBRARY)
    except OSError as error:
        return UserError(
            "no NVIDIA driver was found",
            str(error),
            f"install the NVIDIA driver {MIN_VERSION_NAME} or later (a container uses the host's: NVIDIA Container "
            f"Toolkit, docker run --gpus all), {FALLBACK_HINT}",
        )
    return None


def init_error() -> UserError | None:
    """Return an error if the driver is installed but cannot be initialised.

    Return ``None`` if the driver can be initialised, if it finds no GPU, or if it cannot be loaded (``load_error``).
    """
    code = NO_DEVICE if load_error() else function("cuInit")(0)
    return None if code in (0, NO_DEVICE) else call_error("the NVIDIA driver does not start", "cuInit", code)


def no_gpu_error() -> UserError:
    """Return an error that says why this process sees no GPU."""
    what, visible = "no GPU was found", os.environ.get("CUDA_VISIBLE_DEVICES")
    if cause := load_error() or init_error():
        return UserError(what, f"{cause.what}: {cause.why}", cause.remedy, code=cause.code)
    if visible is None:
        return UserError(what, *ERROR_HELP[NO_DEVICE])
    return UserError(
        what,
        f"CUDA_VISIBLE_DEVICES={visible} names no GPU of this machine" if visible else "CUDA_VISIBLE_DEVICES is empty",
        "request a GPU from the scheduler (Slurm: --gpus-per-task=1), or set CUDA_VISIBLE_DEVICES to numbers or UUIDs "
        f"that nvidia-smi -L prints, {FALLBACK_HINT}",
    )


def call_error(what: str, name: str, code: int) -> UserError:
    """Return the error for a failed call of a driver function.

    Args:
        what: First part of the message.
        name: Name of the driver function.
        code: Error code that the function has returned.
    """
    text = c_char_p()
    function("cuGetErrorName")(code, text)
    lasting = ExitCode.ERROR if code in PERMANENT_ERRORS else ExitCode.FAILURE
    known = f"{text.value.decode() if text.value else 'unknown error'} ({code})"
    return UserError(f"{what}: {name}: {known}", *ERROR_HELP.get(code, _FAULT), code=lasting)


def version_error() -> UserError | None:
    """Return an error if a driver is installed but is too old for the native kernels, and ``None`` otherwise."""
    found = driver_version()
    if found is None or found >= MIN_VERSION:
        return None
    return UserError(
        f"the NVIDIA driver is too old: it is for CUDA {dotted(found)}",
        "the native kernels are compiled for CUDA 12",
        f"install the NVIDIA driver {MIN_VERSION_NAME} or later, {FALLBACK_HINT}",
    )


def dotted(version: tuple[int, int]) -> str:
    """Format a compute capability or a CUDA version."""
    return f"{version[0]}.{version[1]}"


def driver_version() -> tuple[int, int] | None:
    """Return the CUDA version of the driver, or ``None`` without a driver."""
    number = c_int()
    if not _call("cuDriverGetVersion", number):
        return None
    return number.value // 1000, number.value % 1000 // 10


def gpu_count() -> int:
    """Return the number of GPUs that are visible to this process, or 0 without a driver. Some may not work."""
    number = c_int()
    return number.value if _call("cuInit", 0) and _call("cuDeviceGetCount", number) else 0


def compute_capability(gpu: int) -> tuple[int, int]:
    """Return the compute capability of a GPU as (major, minor), or (0, 0) without a driver."""
    return attribute(gpu, COMPUTE_CAPABILITY_MAJOR), attribute(gpu, COMPUTE_CAPABILITY_MINOR)


def attribute(gpu: int, number: int) -> int:
    """Return an attribute (CUdevice_attribute) of a GPU, or 0 without a driver."""
    value = c_int()
    return value.value if _ask_gpu(gpu, "cuDeviceGetAttribute", value, number) else 0


def gpu_name(gpu: int) -> str:
    """Return the name of a GPU, by its number in the driver's numbering, or an empty string without a driver."""
    return _text("cuDeviceGetName", gpu)


def gpu_location(gpu: int) -> str:
    """Return a string that identifies a GPU by its host and PCI address.

    All MIG devices of a GPU have the same string.
    """
    return f"{hardware.boot_id()} {_text('cuDeviceGetPCIBusId', gpu)}"


def gpu_uuid(gpu: int) -> str:
    """Return the UUID of a GPU or MIG device, or an empty string if the driver is older than CUDA 11.4."""
    value = ctypes.create_string_buffer(16)
    return str(uuid.UUID(bytes=value.raw)) if _ask_gpu(gpu, "cuDeviceGetUuid_v2", value) else ""


def _text(name: str, gpu: int) -> str:
    text = ctypes.create_string_buffer(256)
    return text.value.decode("utf-8", "replace") if _ask_gpu(gpu, name, text, len(text)) else ""


def _ask_gpu(gpu: int, name: str, *arguments: object) -> bool:
    """Call a driver function whose last argument is a device. Return True if the call succeeded."""
    device = c_int()
    return _call("cuInit", 0) and _call("cuDeviceGet", device, gpu) and _call(name, *arguments, device)


def _call(name: str, *arguments: object) -> bool:
    """Call a driver function. Return True if the function exists and the call succeeded."""
    try:
        return bool(function(name)(*arguments) == 0)
    except (OSError, AttributeError):
        return False
