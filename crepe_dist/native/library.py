"""Loader of the compiled CPU kernels.

It selects a build for the CPU of this host, verifies that the build was compiled from the installed sources, and
declares the signatures of the C functions for ctypes.
"""

import ctypes
import json
import os
import time
from collections.abc import Iterable
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crepe_dist import hardware
from crepe_dist.errors import UserError
from crepe_dist.files.safe_read import sha256

if TYPE_CHECKING:
    import numpy as np

# Environment variable for developers. Its value is one of BUILDS, or NONE to run as if installed without a compiler.
KERNELS_ENV = "CREPE_DIST_KERNELS"
NONE = "none"  # Value of ``KERNELS_ENV``.
# Environment variable for developers. If its value is 1, builds without bfloat16 instructions emulate these
# instructions.
IN_SOFTWARE = "CREPE_DIST_SOFTWARE_BFLOAT16"
GENERIC = "generic"  # Name of the build that runs on every CPU of the architecture.
PROCESSOR = Path("/proc/cpuinfo")
FOLDER = Path(__file__).parent
# SHA-256 checksums of the builds and of their sources. The compilation writes this file.
RECORD = FOLDER / "builds.json"
# Builds in order of preference, and the flags in /proc/cpuinfo that each build requires. tools/hatch_build.py compiles
# them.
AVX512 = {"fma", "avx512f", "avx512bw", "avx512vl", "avx512dq"}
BUILDS = {
    "amx": AVX512 | {"avx512vbmi", "avx512_bf16", "amx_tile", "amx_bf16"},
    "avx512_bf16": AVX512 | {"avx512_bf16"},
    "avx512": AVX512,
    "avx2": {"avx2", "fma", "f16c"},
    GENERIC: set(),
}
# Constants of the measurement that compares bfloat16 with float32: rows and columns of the matrices, which are as wide
# as the convolutional branch; matrix products per timing, which take 0.05 milliseconds; and pairs of timings.
MATMUL_SIZE, MATMULS_PER_TIMING, TIMED_PAIRS = 64, 10, 31
# float32 replaces bfloat16 only if its speedup exceeds this number, because float32 takes twice the memory.
MIN_FLOAT32_SPEEDUP = 1.15
_BYTES = ctypes.c_void_p
_FLOATS = ctypes.c_void_p
_DOUBLES = ctypes.c_void_p
_ARRAYS = ctypes.POINTER(ctypes.c_void_p)
_LONG = ctypes.c_int64
_LONGS = ctypes.c_void_p
_INTS = ctypes.c_void_p
# Arguments for dropout: probability, seed, and index of the first document in the global batch.
_DROPOUT = (ctypes.c_double, ctypes.c_uint64, ctypes.c_uint64)
# Arguments for fixed-point gradients: the gradients, the exponents of their scales, the unit of the bounds, and the
# bounds. See optim/fixed_point.py.
_FIXED_POINT = (_ARRAYS, _INTS, ctypes.c_double, _FLOATS)
# Arguments for messages between hosts: whether the messages have their first and their second part; addresses and sizes
# of packed messages; received messages, their sizes, and the rank that sent a wrong message.
_FLAGS = (ctypes.c_bool, ctypes.c_bool)
_MESSAGES = (_LONGS, _LONGS)
_RECEIVED = (_BYTES, _LONGS, _INTS)
_UPDATE = (
    ctypes.c_bool,
    _DOUBLES,
    ctypes.c_int,
    _LONGS,
    *[_ARRAYS] * 4,
    *[_DOUBLES] * 2,
    ctypes.c_double,
    ctypes.c_int,
)


class CParameter(ctypes.Structure):
    """Parameter of a network, in the memory layout of the struct ``CompressedArray`` in native/compressed_array.h."""

    _fields_ = (
        ("words", _LONGS), ("before", _INTS), ("size", _LONG), ("values", _FLOATS), ("codes", _BYTES),
        ("numbers", _LONG), ("is_half", _LONG),
    )  # fmt: skip


# Result type and argument types of each C function.
_FUNCTIONS = {
    "crepe_has_bfloat16": (ctypes.c_int, ()),
    "crepe_open_crepe": (ctypes.c_void_p, (ctypes.c_int, _LONGS, ctypes.c_double, ctypes.c_int)),
    "crepe_open_paper": (ctypes.c_void_p, (ctypes.c_int, _LONGS, ctypes.c_int)),
    "crepe_open_ngrams": (ctypes.c_void_p, (_LONGS, ctypes.c_int)),
    "crepe_count_ngrams": (ctypes.c_int, (_BYTES, _LONG, _LONG, _LONGS, _LONGS, _LONGS, ctypes.c_int)),
    "crepe_find_ngrams": (ctypes.c_int, (_BYTES, _LONG, _LONG, _LONGS, _LONG, _LONGS, _LONGS, ctypes.c_int)),
    "crepe_close": (None, (ctypes.c_void_p,)),
    "crepe_set_loss": (ctypes.c_int, (ctypes.c_void_p, ctypes.c_void_p, _FLOATS, _LONG)),
    "crepe_set_parameters": (ctypes.c_int, (ctypes.c_void_p, ctypes.POINTER(CParameter), ctypes.c_int)),
    "crepe_attach_embedding": (ctypes.c_int, (ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p, _LONG)),
    "crepe_forward": (ctypes.c_int, (ctypes.c_void_p, _BYTES, _LONG, _LONG, _FLOATS)),
    "crepe_branch_logits": (ctypes.c_int, (ctypes.c_void_p, _BYTES, _LONG, _LONG, _FLOATS)),
    "crepe_find_rows": (ctypes.c_int, (ctypes.c_void_p, _BYTES, _LONG)),
    "crepe_forward_backward": (ctypes.c_int, (ctypes.c_void_p, _BYTES, _LONG, *_DROPOUT, *_FIXED_POINT, _DOUBLES)),
    "crepe_to_half": (_LONG, (_FLOATS, _LONG, _LONG, _BYTES, _BYTES)),
    "crepe_time_matmul": (ctypes.c_int, (ctypes.c_int, _LONG, ctypes.c_int, ctypes.c_int)),
    "crepe_update_parameters": (None, _UPDATE),
    "crepe_embedding_bytes": (_LONG, (_LONGS, _INTS)),
    "crepe_embedding_rows_per_shard": (_LONG, (_LONGS, _INTS)),
    "crepe_embedding_open": (
        ctypes.c_void_p,
        (_LONGS, ctypes.c_bool, _DOUBLES, _ARRAYS, _INTS, ctypes.c_int, ctypes.c_int),
    ),
    "crepe_embedding_close": (None, (ctypes.c_void_p,)),
    "crepe_embedding_update": (ctypes.c_int, (ctypes.c_void_p, ctypes.c_double, ctypes.c_double, ctypes.c_double)),
    "crepe_embedding_apply_lazy_updates": (ctypes.c_int, (ctypes.c_void_p,)),
    "crepe_embedding_load": (ctypes.c_int, (ctypes.c_void_p, _FLOATS, _FLOATS, _FLOATS, _INTS, _DOUBLES, _LONG)),
    "crepe_embedding_store": (None, (ctypes.c_void_p, _LONG, _LONG, _FLOATS, _FLOATS, _FLOATS, _INTS)),
    "crepe_embedding_drift_history": (_LONG, (ctypes.c_void_p, _DOUBLES)),
    "crepe_exchange_open": (
        ctypes.c_void_p,
        (
            _ARRAYS,
            ctypes.c_int,
            _INTS,
            ctypes.c_int,
            ctypes.c_int,
            _INTS,
            _INTS,
            ctypes.c_int,
            ctypes.c_void_p,
            ctypes.c_int,
        ),
    ),
    "crepe_exchange_close": (None, (ctypes.c_void_p,)),
    "crepe_exchange_pack_grads": (ctypes.c_int, (ctypes.c_void_p, *_FLAGS, *_MESSAGES)),
    "crepe_exchange_read_grads": (ctypes.c_int, (ctypes.c_void_p, *_FLAGS, *_RECEIVED)),
    "crepe_exchange_pack_rows": (ctypes.c_int, (ctypes.c_void_p, *_FLAGS, *_MESSAGES)),
    "crepe_exchange_read_rows": (ctypes.c_int, (ctypes.c_void_p, *_FLAGS, *_RECEIVED)),
    "crepe_barrier_arrive": (ctypes.c_int, (ctypes.c_void_p, ctypes.c_int)),
    "crepe_barrier_wait": (ctypes.c_int, (ctypes.c_void_p, ctypes.c_int, ctypes.c_double)),
    "crepe_sum_int32": (None, (_ARRAYS, ctypes.c_int, ctypes.c_int, _LONG, _LONG)),
    "crepe_encode": (None, (ctypes.c_char_p, ctypes.c_int, _LONGS, _LONG, _LONG, ctypes.c_int, _BYTES, _BYTES)),
}


class Library:
    """Loaded build of the kernels.

    Attributes:
        name: Name of the build, one of ``BUILDS``.
        emulates: True if the build has no bfloat16 instructions, and the variable ``IN_SOFTWARE`` requests their
            emulation.
        bfloat16: True if the build can compute in bfloat16 in this process.
        functions: C functions of the build.

    Raises:
        OSError: The build is missing or damaged, was compiled from other sources, or cannot be loaded.
    """

    def __init__(self, name: str) -> None:
        path = FOLDER / f"crepe_{name}.so"
        _check(name, path)
        self.name = name
        self.functions = ctypes.CDLL(str(path))
        for function, (result, arguments) in _FUNCTIONS.items():
            getattr(self.functions, function).restype = result
            getattr(self.functions, function).argtypes = arguments
        self.emulates = "avx512_bf16" not in BUILDS[name] and os.environ.get(IN_SOFTWARE) == "1"
        self.bfloat16 = self.emulates or bool(self.functions.crepe_has_bfloat16())

    @cached_property
    def bfloat16_is_slower(self) -> bool:
        """True if matrix products take clearly longer in bfloat16 than in float32.

        Only the build ``avx512_bf16`` needs a measurement, which takes 3 milliseconds. AMX is always faster than
        float32. AVX512-BF16 is twice as fast as float32 on AMD CPUs, and half as fast on some Intel CPUs. Other load on
        the machine does not change the result, because the load slows both timings of a pair and disturbs few of the
        pairs.
        """
        if self.name != "avx512_bf16":
            return False
        slower = 0
        for _ in range(TIMED_PAIRS):
            times = [time.thread_time()]
            for bfloat16 in (False, True):
                self.functions.crepe_time_matmul(bfloat16, MATMUL_SIZE, 1, MATMULS_PER_TIMING)
                times.append(time.thread_time())
            slower += times[2] - times[1] > MIN_FLOAT32_SPEEDUP * (times[1] - times[0])
        return slower > TIMED_PAIRS / 2


def _check(name: str, path: Path) -> None:
    """Verify the checksums of a build and of its sources. A wrong build could crash, or compute wrong results.

    Raises:
        OSError: The build is missing or damaged, or was compiled from other sources.
    """
    try:
        record = json.loads(RECORD.read_text(encoding="utf-8"))
        builds, sources = record["builds"], record["sources"]
    except FileNotFoundError as error:
        raise OSError(f"{RECORD.name} is missing: installed without a compiler, or installation incomplete") from error
    except (ValueError, KeyError, TypeError) as error:
        raise OSError(f"{RECORD.name} is damaged; install crepe_dist again") from error
    if name not in builds:
        raise OSError(f"the compiler could not build {path.name} at installation")
    if any((FOLDER / source).is_file() and sha256(FOLDER / source) != digest for source, digest in sources.items()):
        raise OSError(f"{path.name} was compiled from another version of crepe_dist; install it again")
    if sha256(path) != builds[name]:
        raise OSError(f"{path.name} is damaged; install crepe_dist again")


def supported_builds() -> list[str]:
    """Return the names of the builds that the CPU of this host can run, in order of preference."""
    flags = processor_flags()
    return [name for name, needed in BUILDS.items() if needed <= flags]


def processor_flags() -> set[str]:
    """Return the CPU flags in ``/proc/cpuinfo``, such as ``avx2``."""
    try:
        lines = PROCESSOR.read_text(encoding="utf-8").splitlines()
    except OSError:
        return set()
    return next((set(line.split(":", 1)[1].split()) for line in lines if line.startswith("flags")), set())


def find() -> tuple[Library | None, str]:
    """Select and load a build.

    The environment variable ``KERNELS_ENV`` has priority over ``pin_build``. If both are unset, the best build that
    works is selected.

    Returns:
        The build, and the reason why no better build is used. The build is ``None`` if no build works, or if
        ``KERNELS_ENV`` is ``NONE``. The reason is empty if there is none.

    Raises:
        UserError: ``KERNELS_ENV`` specifies a build that this process cannot use.
    """
    requested = os.environ.get(KERNELS_ENV, "")
    if requested:
        return _named(requested, KERNELS_ENV)
    return (_selected[-1], "") if _selected else _best()


def loadable_builds() -> list[str]:
    """Return the names of the builds that ``find`` can select in this process, in order of preference."""
    requested = os.environ.get(KERNELS_ENV, "")
    names = [requested] if requested else supported_builds()
    return [name for name in names if name != NONE and _load(name)[0] is not None]


def load_build(name: str, setting: str) -> Library:
    """Load the build that a setting specifies.

    Args:
        name: Name of the build, one of ``BUILDS``.
        setting: Name of the setting, for messages.

    Raises:
        UserError: This process cannot use the build, or ``KERNELS_ENV`` specifies another build.
    """
    requested = os.environ.get(KERNELS_ENV, name)
    if requested != name:
        raise UserError(f"{setting} is {name}, but {KERNELS_ENV} is {requested}", remedy=f"unset {KERNELS_ENV}")
    found, _ = _named(name, setting)
    assert found is not None
    return found


def pin_build(build: Library | None) -> None:
    """Make ``find`` select a build from now on, so that all computations in this process use the same build.

    Args:
        build: The build. If it is ``None`` or the best build, the default selection is restored.
    """
    best, _ = _best()
    _selected[:] = [] if build is None or (best and build.name == best.name) else [build]


def functions() -> ctypes.CDLL:
    """Return the C functions of the build that ``find`` selects. The caller must have checked that a build works."""
    found, trouble = find()
    assert found is not None, trouble
    return found.functions


def pointers(arrays: Iterable["np.ndarray[Any, Any] | None"]) -> Any:
    """Return the addresses of arrays as a C array. For ``None``, the address is a null pointer."""
    addresses = [None if array is None else array.ctypes.data for array in arrays]
    return (ctypes.c_void_p * len(addresses))(*addresses)


_selected: list[Library] = []  # The build that ``pin_build`` selected, if any.


@cache
def _named(name: str, setting: str) -> tuple[Library | None, str]:
    if name == NONE:
        return None, f"{setting} is {NONE}"
    if name not in BUILDS:
        raise UserError(f"{setting} is {name}", "there is no such build of the kernels", _others(setting))
    if name not in supported_builds():
        missing = ", ".join(sorted(BUILDS[name] - processor_flags()))
        raise UserError(f"{setting} is {name}", f"this processor lacks {missing}", _others(setting))
    found, trouble = _load(name)
    if found is None:
        raise UserError(f"{setting} is {name}, which cannot be used", trouble, _others(setting))
    return found, f"{setting} is {name}"


def _others(setting: str) -> str:
    """Return a remedy that lists the builds that work on this host."""
    names = [name for name in supported_builds() if _load(name)[0] is not None]
    if setting != KERNELS_ENV:
        return f"use {setting} {', '.join([*names, 'auto'])}"
    return f"set {KERNELS_ENV} to {', '.join([*names, NONE])}, or unset it"


@cache
def _best() -> tuple[Library | None, str]:
    names = supported_builds()
    trouble = "this processor has no AVX2" if names == [GENERIC] else ""
    for name in names:
        found, why = _load(name)
        trouble = trouble or why
        if found is not None:
            return found, trouble
    return None, trouble


def _load(name: str) -> tuple[Library | None, str]:
    """Load a build. Return the build and an empty reason, or ``None`` and the reason why it cannot be used."""
    try:
        found = Library(name)
    except OSError as error:
        return None, str(error)
    if "avx512_bf16" in BUILDS[name] and not found.bfloat16:
        return None, "the system does not let this process use AMX"
    return found, ""


def num_threads() -> int:
    """Return the number of threads of this process: ``OMP_NUM_THREADS``, or by default one thread per core."""
    first = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    return max(1, int(first)) if first.isdigit() else hardware.num_cores()
