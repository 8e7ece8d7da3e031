"""Build hook that compiles crepe_dist/native for each supported kind of processor."""

import hashlib
import json
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

FOLDER = Path("crepe_dist") / "native"
AVX512 = "-mfma -mavx512f -mavx512bw -mavx512vl -mavx512dq"
# The names are used by crepe_dist/native/library.py. "generic" is for any processor of the machine's architecture.
BUILDS = {
    "generic": "",
    "avx2": "-mavx2 -mfma -mf16c",
    "avx512": AVX512,
    "avx512_bf16": f"{AVX512} -mavx512bf16",
    "amx": f"{AVX512} -mavx512vbmi -mavx512bf16 -mamx-tile -mamx-bf16",
}
FLAGS = (
    "-std=c++17 -O3 -fno-math-errno -fno-trapping-math -fno-strict-aliasing -fopenmp -fPIC -shared -Wall -Wextra "
    "-Wno-psabi "  # vectors are passed between functions of one build only
    "-Wl,--as-needed"  # threads.cpp stands for libgomp
)
# What a Linux of manylinux_2_28 has (PEP 600): versions of symbols, and libraries.
MANYLINUX = "manylinux_2_28"
NEWEST = {"GLIBC": (2, 28), "GLIBCXX": (3, 4, 24), "CXXABI": (1, 3, 11), "GCC": (7, 0, 0)}
LIBRARIES = re.compile(rb"(libc\.so\.6|libm\.so\.6|libstdc\+\+\.so\.6|libgcc_s\.so\.1|ld-linux-[\w-]+\.so\.\d)")


class NativeBuildHook(BuildHookInterface):
    """Build hook; without a compiler, NumPy computes for inference, and MXNet's operators in training."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if self.target_name != "wheel":
            return
        folder = Path(self.root) / FOLDER
        record = folder / "builds.json"
        builds = _unchanged(folder) or _compiled(folder)
        if not builds["builds"]:
            record.unlink(missing_ok=True)
            return
        partial = record.with_suffix(f".{os.getpid()}")
        partial.write_text(json.dumps(builds, indent=2) + "\n", encoding="utf-8")
        partial.replace(record)
        build_data["artifacts"] += [
            f"/{FOLDER}/builds.json",
            *(f"/{FOLDER}/{_file(name)}" for name in builds["builds"]),
        ]
        libraries = [folder / _file(name) for name in builds["builds"]]
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{MANYLINUX if all(map(_is_portable, libraries)) else 'linux'}_{_machine()}"


def _unchanged(folder: Path) -> dict[str, Any] | None:
    """Return the record of an earlier compilation, if it would be repeated with the same result."""
    try:
        record: dict[str, Any] = json.loads((folder / "builds.json").read_text(encoding="utf-8"))
        is_same = (record["sources"], record["by"]) == (_sources(folder), _by()) and all(
            _digest(folder / _file(name)) == digest for name, digest in record["builds"].items()
        )
    except (OSError, ValueError, KeyError, TypeError, subprocess.CalledProcessError):
        return None
    return record if is_same else None


def _compiled(folder: Path) -> dict[str, Any]:
    """Compile each build that the compiler can; return the checksums, by name, and what determines them."""
    (folder / "constants.hpp").write_text(_constants(folder), encoding="utf-8")
    if shutil.which(_compiler()[0]) is None:
        print(f"{_compiler()[0]} was not found: crepe_dist is installed without its own kernels", file=sys.stderr)
        return {"builds": {}}
    # Longest first: a later processor has more instructions, and its build takes up to twice as long.
    names = list(reversed(_builds()))
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        digests = dict(zip(names, pool.map(lambda name: _build(folder, name), names)))
    found = {name: digest for name, digest in digests.items() if digest is not None}
    return {"builds": found, "sources": _sources(folder), "by": _by() if found else []}


def _build(folder: Path, name: str) -> str | None:
    """Compile one build; return its checksum, or ``None`` if the compiler cannot."""
    target = folder / _file(name)
    partial = target.with_suffix(f".{os.getpid()}")
    units = [str(path) for path in sorted(folder.glob("*.cpp"))]
    flags = [*FLAGS.split(), *_builds()[name].split()]
    done = subprocess.run([*_compiler(), *flags, *units, "-o", str(partial)], capture_output=True, text=True)
    if done.returncode != 0:  # an old compiler may not know the newest instructions
        print(f"crepe_dist is installed without its kernels for {name}:\n{done.stderr}", file=sys.stderr)
        return None
    partial.replace(target)
    print(f"compiled the kernels for {name}", file=sys.stderr, flush=True)
    return _digest(target)


def _constants(folder: Path) -> str:
    """Return the header with the values of constants.py."""
    lines = [
        "// Written by tools/hatch_build.py from constants.py, which says what they mean.",
        "#pragma once",
        "#include <cstdint>",
    ]
    for name, value in runpy.run_path(str(folder / "constants.py")).items():
        if name.isupper() and isinstance(value, tuple):
            lines.append(f"constexpr long {name}[] = {{{', '.join(map(str, value))}}};")
        elif name.isupper():
            kind, end = (
                ("float", "f") if isinstance(value, float) else ("long", "") if value < 1 << 31 else ("uint64_t", "u")
            )
            lines.append(f"constexpr {kind} {name} = {value}{end};")
    return "\n".join(lines) + "\n"


def _is_portable(library: Path) -> bool:
    """Return True if a library needs nothing that a Linux of ``MANYLINUX`` lacks; all that it needs is named in it."""
    content = library.read_bytes()
    needed = re.findall(rb"(?<=\0)((?:lib|ld-)[\w+.-]+\.so\.\d+)(?=\0)", content)
    versions = re.findall(rb"(?<=\0)(GLIBC|GLIBCXX|CXXABI|GCC)_(\d[\d.]*)(?=\0)", content)
    return all(map(LIBRARIES.fullmatch, needed)) and all(
        tuple(map(int, version.split(b"."))) <= NEWEST[name.decode()] for name, version in versions
    )


def _builds() -> dict[str, str]:
    return BUILDS if _machine() == "x86_64" else {"generic": BUILDS["generic"]}


def _machine() -> str:
    """Return the architecture that the compiler compiles for, such as x86_64."""
    target = subprocess.run([*_compiler(), "-dumpmachine"], capture_output=True, text=True, check=True).stdout
    return target.split("-")[0]


def _file(name: str) -> str:
    return f"crepe_{name}.so"


def _compiler() -> list[str]:
    return shlex.split(os.environ.get("CXX") or "g++")


def _by() -> list[Any]:
    """Return the version of the compiler, and its flags."""
    version = subprocess.run([*_compiler(), "--version"], capture_output=True, text=True, check=True).stdout
    return [version.splitlines()[0], FLAGS, _builds()]


def _sources(folder: Path) -> dict[str, str]:
    written = [*folder.glob("*.cpp"), *folder.glob("*.h"), folder / "constants.py"]
    return {path.name: _digest(path) for path in sorted(written)}


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
