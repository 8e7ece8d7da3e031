"""The NVIDIA driver: its functions with their signatures, and questions that need no context.

Checked with cuda.h of CUDA 12.8. A function with a version in its name is the one that the header's macro names, which
programs compiled in C call; the name without it is kept for programs older than CUDA 3.2 or 4.0.
"""

from __future__ import annotations

import ctypes
import uuid
from ctypes import POINTER, c_char_p, c_int, c_size_t, c_ubyte, c_uint, c_uint64, c_void_p
from functools import cache
from typing import Any

from crepe_dist import hardware
from crepe_dist.errors import ExitCode, UserError

LIBRARY = "libcuda.so.1"
# Lowest CUDA version of a driver for our kernels. 12.0 runs the code of all of CUDA 12 (NVIDIA's "CUDA Compatibility").
OLDEST, OLDEST_NAME = (12, 0), "525.60.13"
WITHOUT = "or compute without it: --device cpu"
NO_DEVICE = 100
_IMAGE = (
    "this driver cannot load the compiled kernels",
    f"install a newer NVIDIA driver, or remove the cache of compiled kernels (~/.cache/crepe_dist/cuda), {WITHOUT}",
)
# Causes and remedies of errors by their number. Others, such as 700 to 719 of kernels, are a bug or a fault of the GPU.
HELP = {
    3: ("the process was forked from one that uses the GPU", "report it"),
    46: (
        "another process has it for itself (compute mode EXCLUSIVE_PROCESS), or it is in an error state",
        f"end the other process (nvidia-smi shows it), or allow several: nvidia-smi -c DEFAULT, {WITHOUT}",
    ),
    NO_DEVICE: ("the driver finds no GPU", f"check nvidia-smi and CUDA_VISIBLE_DEVICES, {WITHOUT}"),
    **dict.fromkeys((200, 209, 218, 221, 222), _IMAGE),  # of machine code, PTX, and the driver's compiler of PTX
    802: ("the GPUs are not ready yet", "start NVIDIA's fabric manager: systemctl start nvidia-fabricmanager"),
    803: ("the driver was updated, and its library does not fit its kernel module", f"restart the machine, {WITHOUT}"),
}
_FAULT = (
    "a fault of the GPU, its connection or its driver, or a bug",
    "read what nvidia-smi says, and Xid in the kernel's log (dmesg), and run the same command again; if it happens "
    "again, report it",
)
_LASTING = HELP.keys() - {46, 802}  # errors that stay until somebody acts; after others the same command may succeed
_INT = POINTER(c_int)
_HANDLE = POINTER(c_void_p)
_ADDRESS = c_uint64  # CUdeviceptr
# Argument types; all return a CUresult. The drivers of CUDA 12 have all of them.
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
    "cuModuleLoadData": (_HANDLE, c_void_p),
    "cuModuleUnload": (c_void_p,),
    "cuModuleGetFunction": (_HANDLE, c_void_p, c_char_p),
    "cuLaunchKernel": (c_void_p, *[c_uint] * 7, c_void_p, _HANDLE, _HANDLE),
}
# CUdevice_attribute
COMPUTE_CAPABILITY = (75, 76)  # COMPUTE_CAPABILITY_MAJOR, _MINOR


@cache
def function(name: str) -> Any:
    """Return a function of the driver.

    Raises:
        OSError: there is no driver.
        AttributeError: the driver is older than the function.
    """
    found = getattr(ctypes.CDLL(LIBRARY), name)
    found.argtypes, found.restype = FUNCTIONS[name], c_int
    return found


def missing() -> UserError | None:
    """Return the error for a driver whose library cannot be loaded; ``None`` if it can."""
    try:
        ctypes.CDLL(LIBRARY)
    except OSError as error:
        return UserError(
            "no NVIDIA driver was found",
            str(error),
            f"install the NVIDIA driver {OLDEST_NAME} or later (a container uses the host's: NVIDIA Container "
            f"Toolkit, docker run --gpus all), {WITHOUT}",
        )
    return None


def fault() -> UserError | None:
    """Return the error for a driver that does not start; ``None`` if it does, finds no GPU, or cannot be loaded."""
    code = NO_DEVICE if missing() else function("cuInit")(0)
    return None if code in (0, NO_DEVICE) else failure("the NVIDIA driver does not start", "cuInit", code)


def failure(what: str, name: str, code: int) -> UserError:
    """Return the error for a function of the driver that failed."""
    text = c_char_p()
    function("cuGetErrorName")(code, text)
    lasting = ExitCode.ERROR if code in _LASTING else ExitCode.FAILURE
    known = f"{text.value.decode() if text.value else 'unknown error'} ({code})"
    return UserError(f"{what}: {name}: {known}", *HELP.get(code, _FAULT), code=lasting)


def outdated() -> UserError | None:
    """Return the error for a driver that is too old for our kernels; ``None`` if it is not, or there is none."""
    found = driver_version()
    if found is None or found >= OLDEST:
        return None
    return UserError(
        f"the NVIDIA driver is too old: it is for CUDA {dotted(found)}",
        "our kernels are compiled for CUDA 12",
        f"install the NVIDIA driver {OLDEST_NAME} or later, {WITHOUT}",
    )


def dotted(version: tuple[int, int]) -> str:
    """Format a compute capability, or a version of CUDA."""
    return f"{version[0]}.{version[1]}"


def driver_version() -> tuple[int, int] | None:
    """Return the driver's CUDA version; ``None`` without a driver."""
    number = c_int()
    if not _call("cuDriverGetVersion", number):
        return None
    return number.value // 1000, number.value % 1000 // 10


def count() -> int:
    """Count the GPUs that the driver shows to this process, usable or not; 0 without a driver."""
    number = c_int()
    return number.value if _call("cuInit", 0) and _call("cuDeviceGetCount", number) else 0


def compute_capability(gpu: int) -> tuple[int, int]:
    """Return (major, minor) of a GPU in the driver's numbering; (0, 0) without a driver."""
    major, minor = c_int(), c_int()
    for number, attribute in zip((major, minor), COMPUTE_CAPABILITY):
        _ask_gpu(gpu, "cuDeviceGetAttribute", number, attribute)
    return major.value, minor.value


def name_of(gpu: int) -> str:
    """Return the name of a GPU in the driver's numbering; empty without a driver."""
    return _text("cuDeviceGetName", gpu)


def place_of(gpu: int) -> str:
    """Return the machine and the PCI address of a GPU, which all slices of one have (MIG)."""
    return f"{hardware.boot()} {_text('cuDeviceGetPCIBusId', gpu)}"


def uuid_of(gpu: int) -> str:
    """Return the UUID of a GPU or MIG device in the driver's numbering; empty if the driver is older than CUDA 11.4."""
    value = ctypes.create_string_buffer(16)
    return str(uuid.UUID(bytes=value.raw)) if _ask_gpu(gpu, "cuDeviceGetUuid_v2", value) else ""


def _text(name: str, gpu: int) -> str:
    text = ctypes.create_string_buffer(256)
    return text.value.decode("utf-8", "replace") if _ask_gpu(gpu, name, text, len(text)) else ""


def _ask_gpu(gpu: int, name: str, *arguments: object) -> bool:
    """Call a function of the driver that takes a device as its last argument; return whether it succeeded."""
    device = c_int()
    return _call("cuInit", 0) and _call("cuDeviceGet", device, gpu) and _call(name, *arguments, device)


def _call(name: str, *arguments: object) -> bool:
    """Call a function of the driver; return whether it exists and succeeded."""
    try:
        return bool(function(name)(*arguments) == 0)
    except (OSError, AttributeError):
        return False
