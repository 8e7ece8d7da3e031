"""Build hook that compiles crepe_dist/native for each supported kind of processor."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

FOLDER = Path("crepe_dist") / "native"
AVX512 = "-mfma -mavx512f -mavx512bw -mavx512vl -mavx512dq"
# The names are used by crepe_dist/native/library.py. "generic" is for any processor of the machine's architecture.
BUILDS = {
    "generic": "",
    "avx2": "-mavx2 -mfma",
    "avx512": AVX512,
    "avx512_bf16": f"{AVX512} -mavx512bf16",
    "amx": f"{AVX512} -mavx512vbmi -mavx512bf16 -mamx-tile -mamx-bf16",
}
FLAGS = (
    "-std=c++17 -O3 -fno-math-errno -fno-trapping-math -fno-strict-aliasing -fopenmp -fPIC -shared -Wall -Wextra "
    "-Wno-psabi"  # vectors are passed between functions of one build only
)


class NativeBuildHook(BuildHookInterface):
    """Build hook; without a compiler, NumPy computes for inference, and MXNet's operators in training."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if self.target_name != "wheel":
            return
        folder = Path(self.root) / FOLDER
        record = folder / "builds.json"
        compiler = shlex.split(os.environ.get("CXX") or "g++")
        if shutil.which(compiler[0]) is None:
            print(f"{compiler[0]} was not found: crepe_dist is installed without its own kernels", file=sys.stderr)
            record.unlink(missing_ok=True)
            return
        sources = sorted([*folder.glob("*.cpp"), *folder.glob("*.h")])
        digests = {}
        for name, flags in BUILDS.items():
            if flags and platform.machine() != "x86_64":
                continue
            target = folder / f"crepe_{name}.so"
            partial = target.with_suffix(f".{os.getpid()}")
            units = [str(path) for path in sources if path.suffix == ".cpp"]
            done = subprocess.run(
                [*compiler, *FLAGS.split(), *flags.split(), *units, "-o", str(partial)], capture_output=True, text=True
            )
            if done.returncode != 0:  # an old compiler may not know the newest instructions
                print(f"crepe_dist is installed without its kernels for {name}:\n{done.stderr}", file=sys.stderr)
                continue
            partial.replace(target)
            digests[name] = hashlib.sha256(target.read_bytes()).hexdigest()
        if not digests:
            record.unlink(missing_ok=True)
            return
        digests_of_sources = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sources}
        partial = record.with_suffix(f".{os.getpid()}")
        partial.write_text(
            json.dumps({"builds": digests, "sources": digests_of_sources}, indent=2) + "\n", encoding="utf-8"
        )
        partial.replace(record)
        build_data["artifacts"] += [f"/{FOLDER}/builds.json", *(f"/{FOLDER}/crepe_{name}.so" for name in digests)]
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-linux_{platform.machine()}"
