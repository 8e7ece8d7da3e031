"""Compilation of our kernels by NVRTC, once for each architecture, and a cache of the results."""

from __future__ import annotations

import ctypes
import hashlib
from collections.abc import Mapping
from contextlib import suppress
from ctypes import POINTER, c_char_p, c_int, c_size_t, c_void_p
from functools import cache
from pathlib import Path
from typing import Any

from crepe_dist.errors import ExitCode, UserError
from crepe_dist.files import cache_folder, read_bytes, replacing

LIBRARY = "libnvrtc.so.12"
PACKAGE = "nvidia-cuda-nvrtc-cu12"
KERNELS = Path(__file__).parent / "kernels"
MOST = 1 << 28  # bytes of a compiled program
_TEXTS = POINTER(c_char_p)
_SIZE = POINTER(c_size_t)
# Argument types; all return an nvrtcResult but nvrtcGetErrorString.
FUNCTIONS: dict[str, tuple[Any, ...]] = {
    "nvrtcVersion": (POINTER(c_int), POINTER(c_int)),
    "nvrtcGetNumSupportedArchs": (POINTER(c_int),),  # 11.2
    "nvrtcGetSupportedArchs": (POINTER(c_int),),  # 11.2
    "nvrtcCreateProgram": (POINTER(c_void_p), c_char_p, c_char_p, c_int, _TEXTS, _TEXTS),
    "nvrtcDestroyProgram": (POINTER(c_void_p),),
    "nvrtcCompileProgram": (c_void_p, c_int, _TEXTS),
    "nvrtcGetProgramLogSize": (c_void_p, _SIZE),
    "nvrtcGetProgramLog": (c_void_p, c_char_p),
    "nvrtcGetCUBINSize": (c_void_p, _SIZE),
    "nvrtcGetCUBIN": (c_void_p, c_char_p),
    "nvrtcGetPTXSize": (c_void_p, _SIZE),
    "nvrtcGetPTX": (c_void_p, c_char_p),
}


def compiled(
    program: str, defines: Mapping[str, int | str], capability: tuple[int, int], folder: Path = KERNELS
) -> bytes:
    """Return a program for GPUs of a compute capability, from the cache or compiled now.

    Args:
        program: name of its file in ``folder``, whose other files it can include.
        defines: macros.
    """
    sources = {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.suffix in (".cu", ".cuh")}
    architecture = architecture_for(capability)
    options = [f"--gpu-architecture={architecture}", "-std=c++17", *(f"-D{k}={v}" for k, v in defines.items())]
    key = hashlib.sha256(repr((program, sorted(sources.items()), options, version())).encode()).hexdigest()
    path = cache_folder() / "cuda" / f"{key}.cubin"
    with suppress(OSError, ValueError):
        return read_bytes(path, MOST)
    image = _compile(program, sources, options)
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            temporary.write_bytes(image)
    return image


def architecture_for(capability: tuple[int, int]) -> str:
    """Return the name of the architecture to compile for."""
    number = c_int()
    _call("nvrtcGetNumSupportedArchs", number)
    known = (c_int * number.value)()
    _call("nvrtcGetSupportedArchs", known)
    wanted = 10 * capability[0] + capability[1]
    return f"sm_{wanted}" if wanted in known else f"compute_{max(each for each in known if each <= wanted)}"


@cache
def version() -> tuple[int, int]:
    """Return the CUDA version of NVRTC."""
    major, minor = c_int(), c_int()
    _call("nvrtcVersion", major, minor)
    return major.value, minor.value


def _compile(program: str, sources: Mapping[str, bytes], options: list[str]) -> bytes:
    headers = {name: text for name, text in sources.items() if name != program}
    handle = c_void_p()
    names = (c_char_p * len(headers))(*[name.encode() for name in headers])
    texts = (c_char_p * len(headers))(*headers.values())
    _call("nvrtcCreateProgram", handle, sources[program], program.encode(), len(headers), texts, names)
    try:
        given = (c_char_p * len(options))(*[option.encode() for option in options])
        if code := _function("nvrtcCompileProgram")(handle, len(options), given):
            log = _text(handle, "nvrtcGetProgramLog").rstrip(b"\0").decode("utf-8", "replace")
            raise UserError(f"{program} cannot be compiled for the GPU ({code})", log[-3000:], code=ExitCode.FAILURE)
        return _text(handle, "nvrtcGetCUBIN") or _text(handle, "nvrtcGetPTX")
    finally:
        _call("nvrtcDestroyProgram", handle)


def _text(handle: c_void_p, name: str) -> bytes:
    size = c_size_t()
    _call(f"{name}Size", handle, size)
    buffer = ctypes.create_string_buffer(size.value)
    if size.value:
        _call(name, handle, buffer)
    return buffer.raw


def _call(name: str, *arguments: object) -> None:
    if code := _function(name)(*arguments):
        raise UserError(f"NVRTC failed: {name}: {code}", code=ExitCode.FAILURE)


@cache
def _function(name: str) -> Any:
    found = getattr(ctypes.CDLL(_path()), name)
    found.argtypes, found.restype = FUNCTIONS[name], c_int
    return found


def _path() -> str:
    from importlib import metadata

    with suppress(metadata.PackageNotFoundError):
        return str(metadata.distribution(PACKAGE).locate_file(f"nvidia/cuda_nvrtc/lib/{LIBRARY}"))
    return LIBRARY
