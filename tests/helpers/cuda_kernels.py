"""Registers, spills and shared memory of our CUDA kernels, as NVRTC's ptxas tells them. It needs no GPU."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from crepe_dist import registry
from crepe_dist.cuda import compiler
from crepe_dist.cuda.network import PRECISIONS
from crepe_dist.engines.cuda import shared_constants
from crepe_dist.networks.crepe.shape import CrepeShape
from crepe_dist.networks.ngrams.shape import NGramShape

ARCHITECTURES = (70, 75, 80, 86, 89, 90, 100, 120)
VERBOSE = "--ptxas-options=-v"
KERNEL = re.compile(r"Compiling entry function '(\w+)'")
SPILLS = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
REGISTERS = re.compile(r"Used (\d+) registers")
SHARED = re.compile(r"(\d+) bytes smem")


@dataclass(frozen=True)
class Resources:
    """Resources of a kernel.

    Attributes:
        registers: of a thread.
        shared: bytes of a block's shared memory, without what a launch adds.
        stack: bytes of a thread's stack.
        spilled: bytes that are stored and loaded because the registers do not suffice.
    """

    registers: int
    shared: int
    stack: int
    spilled: int


def resources(log: str) -> dict[str, Resources]:
    """Read the resources of each kernel from NVRTC's messages with ``VERBOSE``."""
    found, name, stack, spilled = {}, "", 0, 0
    for line in log.splitlines():
        if match := KERNEL.search(line):
            name = match[1]
        elif match := SPILLS.search(line):
            stack, spilled = int(match[1]), int(match[2]) + int(match[3])
        elif (match := REGISTERS.search(line)) and name:
            shared = SHARED.search(line)
            found[name] = Resources(int(match[1]), int(shared[1]) if shared else 0, stack, spilled)
            name = ""
    return found


def precisions(architecture: int) -> tuple[str, ...]:
    """Return the precisions that GPUs of an architecture compute in."""
    return ("float32", "float16" if architecture < 80 else "bfloat16")


def programs(networks: list[str], widths: list[int]) -> Iterator[tuple[str, str, dict[str, int | str], bool]]:
    """Yield title, file, constants, and whether the precision changes the kernels, of each program."""
    table = NGramShape(69, 1014, 4, 5, 1 << 20)
    if "ngrams" in networks:
        part = registry.part("ngrams", "cuda")
        yield "ngrams", part.PROGRAM, {**shared_constants(), **part.constants(table)}, False
    for width in widths if "crepe" in networks else ():
        part = registry.part("crepe", "cuda")
        shape = CrepeShape(69, 1014, 4, 5, 1 << 20, 5, 1 << 18, width, 4, 4, 0.3)
        yield f"crepe, {width} channels", part.PROGRAM, {**shared_constants(), **part.constants(shape)}, True


def compiled(
    program: str, constants: dict[str, int | str], precision: str, architecture: int
) -> tuple[bytes, dict[str, Resources]]:
    """Compile a program; return its machine code and the resources of its kernels."""
    defines = {**constants, "PRECISION": PRECISIONS.index(precision)}
    image, log = compiler.compile_program(program, defines, f"sm_{architecture}", [VERBOSE])
    return image, resources(log)
