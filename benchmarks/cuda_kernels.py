#!/usr/bin/env python3
"""Print the registers, spills and shared memory of our CUDA kernels, by architecture, as NVRTC's ptxas tells them.

    uv run --extra gpu benchmarks/cuda_kernels.py
    uv run --extra gpu benchmarks/cuda_kernels.py --networks crepe --widths 64 128 --architectures 80 90

A cell has registers per thread, bytes of static shared memory per block, and bytes that do not fit into the registers.
Dynamic shared memory is chosen at a launch. It needs neither a GPU nor a driver.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from dataclasses import dataclass

from crepe_dist import registry
from crepe_dist.cuda import compiler
from crepe_dist.cuda.program import PRECISIONS
from crepe_dist.engines.cuda import shared_constants
from crepe_dist.networks.crepe.shape import CrepeShape
from crepe_dist.networks.ngrams.shape import NGramShape

ARCHITECTURES = (70, 75, 80, 86, 89, 90, 100, 120)
WIDTHS = (128,)
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

    def __str__(self) -> str:
        return f"{self.registers} / {self.shared:,}" + (f" / **{self.spilled} spilled**" if self.spilled else "")


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=("ngrams", "crepe"), default=["ngrams", "crepe"])
    parser.add_argument("--widths", nargs="+", type=int, default=WIDTHS)
    parser.add_argument("--architectures", nargs="+", type=int, default=ARCHITECTURES)
    flags = parser.parse_args()
    print(f"NVRTC {'.'.join(map(str, compiler.version()))}")
    for title, program, constants, by_precision in programs(flags.networks, flags.widths):
        known: dict[str, list[Resources]] = {}
        for reduced in (False, True) if by_precision else (False,):
            name = "float16 to sm_75, bfloat16 from sm_80: the kernels that differ" if reduced else "float32"
            print(f"\n{title}, {name}\n\n| kernel |{''.join(f' sm_{each} |' for each in flags.architectures)}")
            print(f"|---|{'---|' * len(flags.architectures)}")
            columns = [compiled(program, constants, precisions(each)[reduced], each)[1] for each in flags.architectures]
            for kernel in sorted(columns[0]):
                row = [column[kernel] for column in columns]
                if known.get(kernel) != row:
                    print(f"| {kernel} |{''.join(f' {each} |' for each in row)}")
                known[kernel] = row


if __name__ == "__main__":
    main()
