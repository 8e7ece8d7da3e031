"""Loading of the compiled kernels: selection of the build for this processor, and the signatures of its functions."""

from __future__ import annotations

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
from crepe_dist.files import sha256

if TYPE_CHECKING:
    import numpy as np

SWITCH = "CREPE_DIST_KERNELS"  # for developers: one of BUILDS; or NONE, to behave as if installed without a compiler
NONE = "none"
IN_SOFTWARE = "CREPE_DIST_SOFTWARE_BFLOAT16"  # for developers: if it is 1, builds without the instructions emulate them
GENERIC = "generic"  # for any processor of the architecture
PROCESSOR = Path("/proc/cpuinfo")
FOLDER = Path(__file__).parent
RECORD = FOLDER / "builds.json"  # SHA-256 of the builds and their sources, written at compilation
# Builds, best first, and the flags of /proc/cpuinfo that each needs. tools/hatch_build.py compiles them.
AVX512 = {"fma", "avx512f", "avx512bw", "avx512vl", "avx512dq"}
BUILDS = {
    "amx": AVX512 | {"avx512vbmi", "avx512_bf16", "amx_tile", "amx_bf16"},
    "avx512_bf16": AVX512 | {"avx512_bf16"},
    "avx512": AVX512,
    "avx2": {"avx2", "fma", "f16c"},
    GENERIC: set(),
}
# Matrix product that tells which precision is faster: of the tower's width, 0.05 milliseconds at a time.
PRODUCT_SIZE, PRODUCT_TIMES, PRODUCT_ROUNDS = 64, 10, 31
CLEARLY = 1.15  # times as fast, from which float32 is worth its larger memory
_BYTES = ctypes.c_void_p
_FLOATS = ctypes.c_void_p
_DOUBLES = ctypes.c_void_p
_ARRAYS = ctypes.POINTER(ctypes.c_void_p)
_LONG = ctypes.c_int64
_LONGS = ctypes.c_void_p
_INTS = ctypes.c_void_p
_DROPOUT = (ctypes.c_double, ctypes.c_uint64, ctypes.c_uint64)  # its probability and seed; the first document
_ROUNDED = (_ARRAYS, _INTS, ctypes.c_double, _FLOATS)  # gradients, exponents, unit and bounds; see Quanta
_UPDATE = (ctypes.c_int, _DOUBLES, ctypes.c_int, _LONGS, *[_ARRAYS] * 4, *[_DOUBLES] * 2, ctypes.c_double, ctypes.c_int)


class Stored(ctypes.Structure):
    """A parameter as native/compressed_array.h describes it."""

    _fields_ = (
        ("words", _LONGS), ("before", _INTS), ("size", _LONG), ("values", _FLOATS), ("codes", _BYTES),
        ("numbers", _LONG), ("is_half", _LONG),
    )  # fmt: skip


# function: (result type, argument types)
_FUNCTIONS = {
    "crepe_has_bfloat16": (ctypes.c_int, ()),
    "crepe_open": (ctypes.c_void_p, (ctypes.c_int, _LONGS, ctypes.c_double, ctypes.c_int)),
    "crepe_open_paper": (ctypes.c_void_p, (ctypes.c_int, _LONGS, ctypes.c_int)),
    "crepe_open_ngrams": (ctypes.c_void_p, (_LONGS, ctypes.c_int)),
    "crepe_count_ngrams": (ctypes.c_int, (_BYTES, _LONG, _LONG, _LONGS, _LONGS, _LONGS, ctypes.c_int)),
    "crepe_ngrams": (ctypes.c_int, (_BYTES, _LONG, _LONG, _LONGS, _LONG, _LONGS, _LONGS, ctypes.c_int)),
    "crepe_close": (None, (ctypes.c_void_p,)),
    "crepe_objective": (ctypes.c_int, (ctypes.c_void_p, ctypes.c_void_p, _FLOATS, _LONG)),
    "crepe_set": (ctypes.c_int, (ctypes.c_void_p, ctypes.POINTER(Stored), ctypes.c_int)),
    "crepe_use_table": (ctypes.c_int, (ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p, _LONG)),
    "crepe_forward": (ctypes.c_int, (ctypes.c_void_p, _BYTES, _LONG, _LONG, _FLOATS)),
    "crepe_forward_parts": (ctypes.c_int, (ctypes.c_void_p, _BYTES, _LONG, _LONG, _FLOATS)),
    "crepe_find_rows": (ctypes.c_int, (ctypes.c_void_p, _BYTES, _LONG)),
    "crepe_train": (ctypes.c_int, (ctypes.c_void_p, _BYTES, _LONG, *_DROPOUT, *_ROUNDED, _DOUBLES)),
    "crepe_to_half": (_LONG, (_FLOATS, _LONG, _LONG, _BYTES, _BYTES)),
    "crepe_squares": (None, (ctypes.c_void_p, _LONG, _LONGS)),
    "crepe_products": (ctypes.c_int, (ctypes.c_int, _LONG, ctypes.c_int, ctypes.c_int)),
    "crepe_update": (None, _UPDATE),
    "crepe_table_bytes": (_LONG, (_LONGS, _INTS)),
    "crepe_table_rows_each": (_LONG, (_LONGS, _INTS)),
    "crepe_table_open": (ctypes.c_void_p, (_LONGS, ctypes.c_int, _DOUBLES, _ARRAYS, _INTS, ctypes.c_int, ctypes.c_int)),
    "crepe_table_close": (None, (ctypes.c_void_p,)),
    "crepe_table_read": (None, (ctypes.c_void_p, _INTS, _LONG, _FLOATS)),
    "crepe_table_keep": (None, (ctypes.c_void_p, _LONGS, _ARRAYS)),
    "crepe_table_sum_kept": (ctypes.c_int, (ctypes.c_void_p,)),
    "crepe_table_add": (ctypes.c_int, (ctypes.c_void_p, _ARRAYS, _ARRAYS, _LONGS, ctypes.c_int)),
    "crepe_table_squares": (None, (ctypes.c_void_p, _LONGS)),
    "crepe_table_update": (ctypes.c_int, (ctypes.c_void_p, ctypes.c_double, ctypes.c_double, ctypes.c_double)),
    "crepe_table_flush": (ctypes.c_int, (ctypes.c_void_p,)),
    "crepe_table_load": (ctypes.c_int, (ctypes.c_void_p, _FLOATS, _FLOATS, _FLOATS, _INTS, _DOUBLES, _LONG)),
    "crepe_table_store": (None, (ctypes.c_void_p, _LONG, _LONG, _FLOATS, _FLOATS, _FLOATS, _INTS)),
    "crepe_table_history": (_LONG, (ctypes.c_void_p, _DOUBLES)),
    "crepe_arrive": (ctypes.c_int, (ctypes.c_void_p, ctypes.c_int)),
    "crepe_passed": (ctypes.c_int, (ctypes.c_void_p, ctypes.c_int, ctypes.c_double)),
    "crepe_shorten": (_LONG, (_INTS, _LONG, _INTS)),
    "crepe_widen": (ctypes.c_int, (_INTS, _LONG, _LONG, _INTS)),
    "crepe_add_whole": (None, (_ARRAYS, ctypes.c_int, ctypes.c_int, _LONG, _LONG)),
    "crepe_encode": (None, (ctypes.c_char_p, ctypes.c_int, _LONGS, _LONG, _LONG, ctypes.c_int, _BYTES, _BYTES)),
}


class Library:
    """A loaded build of the kernels.

    Attributes:
        name: name of the build, one of ``BUILDS``.
        emulates: True if it has no instructions for bfloat16, and ``IN_SOFTWARE`` asks for their results.
        bfloat16: True if it may compute in bfloat16 in this process.
        functions: functions of the .cpp files beside this module.

    Raises:
        OSError: The build is missing, damaged, compiled from other sources, or cannot be loaded.
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
        """True if products take clearly longer in bfloat16 than in float32, which takes 3 milliseconds to measure.

        AMX is always faster, and AVX512-BF16 twice as fast on AMD's processors, but half as fast on some of Intel's.
        Load on the machine does not change the answer: it slows both products of a pair, and spoils few of the pairs.
        """
        if self.name != "avx512_bf16":
            return False
        slower = 0
        for _ in range(PRODUCT_ROUNDS):
            times = [time.thread_time()]
            for bfloat16 in (False, True):
                self.functions.crepe_products(bfloat16, PRODUCT_SIZE, 1, PRODUCT_TIMES)
                times.append(time.thread_time())
            slower += times[2] - times[1] > CLEARLY * (times[1] - times[0])
        return slower > PRODUCT_ROUNDS / 2


def _check(name: str, path: Path) -> None:
    """Raise ``OSError`` for a build with a wrong checksum, which could crash the process or compute wrong results."""
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


def runnable() -> list[str]:
    """Return the names of the builds that this processor can run, best first."""
    flags = processor_flags()
    return [name for name, needed in BUILDS.items() if needed <= flags]


def processor_flags() -> set[str]:
    """Return the processor's flags from ``/proc/cpuinfo``, such as ``avx2``."""
    try:
        lines = PROCESSOR.read_text(encoding="utf-8").splitlines()
    except OSError:
        return set()
    return next((set(line.split(":", 1)[1].split()) for line in lines if line.startswith("flags")), set())


def find() -> tuple[Library | None, str]:
    """Select and load the build that ``SWITCH`` or ``keep_to`` names, else the best usable one.

    Returns:
        The build, or ``None`` without a usable one; and the reason why no better build is used, or "".

    Raises:
        UserError: The environment variable ``SWITCH`` names a build that this process cannot use.
    """
    requested = os.environ.get(SWITCH, "")
    if requested:
        return _named(requested, SWITCH)
    return (_kept[-1], "") if _kept else _best()


def usable() -> list[str]:
    """Return the names of the builds that ``find`` might select in this process, best first."""
    requested = os.environ.get(SWITCH, "")
    names = [requested] if requested else runnable()
    return [name for name in names if name != NONE and _load(name)[0] is not None]


def named(name: str, setting: str) -> Library:
    """Load the build that a setting names."""
    requested = os.environ.get(SWITCH, name)
    if requested != name:
        raise UserError(f"{setting} is {name}, but {SWITCH} is {requested}", remedy=f"unset {SWITCH}")
    found, _ = _named(name, setting)
    assert found is not None
    return found


def keep_to(build: Library | None) -> None:
    """Let ``find`` select a build from now on, so that everything in this process computes the same bits.

    Args:
        build: the build; ``None``, or the best one: as at first.
    """
    best, _ = _best()
    _kept[:] = [] if build is None or (best and build.name == best.name) else [build]


def functions() -> ctypes.CDLL:
    """Return the functions of the build that ``find`` selects; call only where there is one."""
    found, trouble = find()
    assert found is not None, trouble
    return found.functions


def pointers(arrays: Iterable[np.ndarray[Any, Any] | None]) -> Any:
    """Return a C array with the addresses of several arrays, or null for ``None``."""
    addresses = [None if array is None else array.ctypes.data for array in arrays]
    return (ctypes.c_void_p * len(addresses))(*addresses)


_kept: list[Library] = []  # the build of ``keep_to``


@cache
def _named(name: str, setting: str) -> tuple[Library | None, str]:
    if name == NONE:
        return None, f"{setting} is {NONE}"
    if name not in BUILDS:
        raise UserError(f"{setting} is {name}", "there is no such build of the kernels", _others(setting))
    if name not in runnable():
        missing = ", ".join(sorted(BUILDS[name] - processor_flags()))
        raise UserError(f"{setting} is {name}", f"this processor lacks {missing}", _others(setting))
    found, trouble = _load(name)
    if found is None:
        raise UserError(f"{setting} is {name}, which cannot be used", trouble, _others(setting))
    return found, f"{setting} is {name}"


def _others(setting: str) -> str:
    """Name the builds that work here; one may be missing, or compiled from other sources."""
    names = [name for name in runnable() if _load(name)[0] is not None]
    if setting != SWITCH:
        return f"use {setting} {', '.join([*names, 'auto'])}"
    return f"set {SWITCH} to {', '.join([*names, NONE])}, or unset it"


@cache
def _best() -> tuple[Library | None, str]:
    names = runnable()
    trouble = "this processor has no AVX2" if names == [GENERIC] else ""
    for name in names:
        found, why = _load(name)
        trouble = trouble or why
        if found is not None:
            return found, trouble
    return None, trouble


def _load(name: str) -> tuple[Library | None, str]:
    """Load a build; return it, or ``None`` and the reason."""
    try:
        found = Library(name)
    except OSError as error:
        return None, str(error)
    if "avx512_bf16" in BUILDS[name] and not found.bfloat16:
        return None, "the system does not let this process use AMX"
    return found, ""


def threads() -> int:
    """Return this process's number of OpenMP threads from ``OMP_NUM_THREADS``; by default one per core."""
    first = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    return max(1, int(first)) if first.isdigit() else hardware.cores()
