"""Compilation of the CUDA kernels by NVRTC, with a cache of the compiled programs on disk.

The function signatures come from nvrtc.h in CUDA 12.8. NVRTC needs neither a GPU nor a driver.
"""

import ctypes
import hashlib
import re
from collections.abc import Mapping
from contextlib import suppress
from ctypes import byref, c_char_p, c_int, c_size_t, c_void_p
from functools import cache
from pathlib import Path
from typing import Any

from crepe_dist import extras
from crepe_dist.cuda import driver
from crepe_dist.cuda.driver import FALLBACK_HINT, dotted
from crepe_dist.errors import ExitCode, UserError
from crepe_dist.files.atomic_write import atomic_replace
from crepe_dist.files.folders import cache_folder
from crepe_dist.files.safe_read import read_bytes

LIBRARY = "libnvrtc.so.12"
PACKAGE, PATH = "nvidia-cuda-nvrtc-cu12", f"nvidia/cuda_nvrtc/lib/{LIBRARY}"
KERNELS = Path(__file__).parent / "kernels"
FLAGS = ("-std=c++17",)
_KERNEL = re.compile(r"(?:^KERNEL\(.*\)|__global__ [^;{]*?) (\w+)\(([^()]*)\) \{", re.MULTILINE)
_LETTERS = {"int": "i", "i64": "q", "u64": "Q", "float": "f", "double": "d"}
MAX_BYTES = 1 << 28  # Maximum number of bytes of a compiled program.


def compile_cached(program: str, defines: Mapping[str, int | str], capability: tuple[int, int]) -> bytes:
    """Return a compiled program from the cache. If it is not in the cache, compile it and add it.

    Args:
        program: Name of the program's source file in ``KERNELS``. The file can include the other files of this folder.
        defines: Values of the macros that the source files use.
        capability: Compute capability of the GPU, major and minor.

    Raises:
        UserError: NVRTC is missing, or the compilation failed.
    """
    architecture = architecture_for(capability)
    facts = (program, sorted(_sources().items()), sorted(defines.items()), architecture, FLAGS, version())
    path = cache_folder() / "cuda" / f"{hashlib.sha256(repr(facts).encode()).hexdigest()}.cubin"
    if image := _cached(path):
        return image
    image = compile_program(program, defines, architecture)
    with suppress(OSError):  # If the cache is not writable, each process compiles the program itself.
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_replace(path) as temporary:
            temporary.write_bytes(hashlib.sha256(image).digest() + image)
    return image


def compile_program(program: str, defines: Mapping[str, int | str], architecture: str) -> bytes:
    """Compile a program without the cache.

    Args:
        program: Name of the program's source file in ``KERNELS``.
        defines: Values of the macros that the source files use.
        architecture: ``sm_XY`` for machine code, or ``compute_XY`` for PTX, which the driver compiles to machine code.

    Raises:
        UserError: NVRTC is missing, or the compilation failed.
    """
    sources = _sources()
    headers = {name: text for name, text in sources.items() if name != program}
    macros = [f"-D{name}={value}" for name, value in defines.items()]
    given = [f"--gpu-architecture={architecture}", *FLAGS, *macros]
    handle = c_void_p()
    texts = _texts(headers.values()), _texts(name.encode() for name in headers)
    _call("nvrtcCreateProgram", byref(handle), sources[program], program.encode(), len(headers), *texts)
    try:
        code = _library().nvrtcCompileProgram(handle, len(given), _texts(option.encode() for option in given))
        if code:
            log = _bytes(handle, "nvrtcGetProgramLog").rstrip(b"\0").decode("utf-8", "replace").strip()
            raise UserError(
                f"the kernels in {program} cannot be compiled for {architecture} ({_error_name(code)})",
                " / ".join(log.splitlines()[:6]),
                f"install {PACKAGE} again ({extras.install_command('gpu')}), or compute without the GPU: --device cpu",
            )
        kind = "nvrtcGetPTX" if architecture.startswith("compute_") else "nvrtcGetCUBIN"
        return _bytes(handle, kind)
    finally:
        _call("nvrtcDestroyProgram", byref(handle))


def parameters() -> dict[str, str]:
    """Return the parameter types of each kernel in ``KERNELS``, as format characters of the module ``struct``."""
    return {
        name: "".join("P" if "*" in each else _LETTERS[each.split()[-2]] for each in declared.split(","))
        for text in _sources().values()
        for name, declared in _KERNEL.findall(text.decode())
    }


def architecture_for(capability: tuple[int, int]) -> str:
    """Return the architecture to compile for.

    If NVRTC does not know the GPU's architecture, return the newest PTX architecture that is older than the GPU. The
    driver, which must be at least as new as NVRTC, compiles the PTX to machine code.
    """
    wanted = 10 * capability[0] + capability[1]
    # CUDA 13 renamed architecture 101 to 110. A GPU of architecture 103 therefore cannot run PTX for architecture 101.
    known = set(_known_architectures()) - {101}
    return f"sm_{wanted}" if wanted in known else f"compute_{max(each for each in known if each < wanted)}"


def compilers(capability: tuple[int, int]) -> str:
    """Describe the compilers that produce the machine code for a compute capability: NVRTC, and the driver for PTX."""
    translated = architecture_for(capability).startswith("compute_")
    return f"NVRTC {dotted(version())}" + f", driver for CUDA {dotted(driver.driver_version() or (0, 0))}" * translated


@cache
def version() -> tuple[int, int]:
    """Return the CUDA version of NVRTC."""
    major, minor = c_int(), c_int()
    _call("nvrtcVersion", byref(major), byref(minor))
    return major.value, minor.value


def missing() -> UserError | None:
    """Return an error if NVRTC cannot be loaded, and ``None`` otherwise."""
    try:
        _library()
    except UserError as error:
        return error
    return None


@cache
def _known_architectures() -> list[int]:
    count = c_int()
    _call("nvrtcGetNumSupportedArchs", byref(count))
    known = (c_int * count.value)()
    _call("nvrtcGetSupportedArchs", known)
    return list(known)


def _sources() -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(KERNELS.iterdir()) if path.suffix in (".cu", ".cuh")}


def _cached(path: Path) -> bytes | None:
    """Return a program from the cache, or ``None`` if it is missing or damaged."""
    with suppress(OSError, ValueError):
        data = read_bytes(path, MAX_BYTES)
        digest = hashlib.sha256().digest_size
        if hashlib.sha256(data[digest:]).digest() == data[:digest]:
            return data[digest:]
    return None


def _texts(texts: Any) -> Any:
    listed = list(texts)
    return (c_char_p * len(listed))(*listed)


def _bytes(handle: c_void_p, name: str) -> bytes:
    size = c_size_t()
    _call(f"{name}Size", handle, byref(size))
    buffer = ctypes.create_string_buffer(max(size.value, 1))
    _call(name, handle, buffer)
    return buffer.raw[: size.value]


def _call(name: str, *arguments: object) -> None:
    if code := getattr(_library(), name)(*arguments):
        raise UserError(
            f"NVRTC failed: {name}: {_error_name(code)}",
            "a broken installation of NVRTC, or a bug in crepe_dist",
            f"install {PACKAGE} again, {FALLBACK_HINT}",
            code=ExitCode.FAILURE,
        )


def _error_name(code: int) -> str:
    return (_library().nvrtcGetErrorString(code) or b"").decode() or str(code)


@cache
def _library() -> ctypes.CDLL:
    try:
        found = load_from_package(PACKAGE, PATH)
    except OSError as error:
        raise UserError(
            f"{LIBRARY}, which compiles the kernels for the GPU, cannot be loaded",
            str(error),
            f"{extras.install_command('gpu')}; or compute without the GPU: --device cpu",
        ) from error
    found.nvrtcGetErrorString.restype = c_char_p  # All other functions return an integer.
    return found


def load_from_package(package: str, path: str) -> ctypes.CDLL:
    """Load a library from a Python package. If that fails, load the system's library with the same file name.

    Args:
        package: Name of the package.
        path: Path of the library, relative to the folder of installed packages.
    """
    from importlib import metadata  # The import is slow, and most predictions do not need it.

    with suppress(metadata.PackageNotFoundError, OSError):
        return ctypes.CDLL(str(metadata.distribution(package).locate_file(path)))
    return ctypes.CDLL(Path(path).name)
