"""Second names for shared libraries that this process has loaded.

glibc finds a loaded library by its SONAME alone, which has a version: ``dlopen("libcuda.so")`` does not find
``libcuda.so.1``. A symbolic link in a folder that is not searched does not help, because a name that was found through
a path is remembered with its path. Checked with glibc 2.41: elf/dl-load.c, ``_dl_map_object``.
"""

from __future__ import annotations

import ctypes
import struct
import tempfile
from pathlib import Path

# Constants of ELF files: System V gABI, chapters 4 and 5; the stack's header is GNU's.
SHARED_OBJECT, X86_64 = 3, 62
LOAD, DYNAMIC, STACK = 1, 2, 0x6474E551
READ, WRITE = 4, 2
NEEDED, HASH, STRTAB, SYMTAB, STRSZ, SYMENT, SONAME, END = 1, 4, 5, 6, 10, 11, 14, 0
HEADER, PROGRAM_HEADER, SYMBOL, ENTRY = 64, 56, 24, 16  # bytes


def load(alias: str, library: str) -> None:
    """Let ``dlopen(alias)`` find ``library``, whose SONAME that is, from anywhere in this process.

    It loads an empty library whose SONAME is the alias and which needs ``library``: dlsym also searches what a library
    needs. Its file is deleted at once, and holds no code, so that a folder without execute permission does.

    Raises:
        OSError: ``library`` cannot be loaded, or no temporary file can be written.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / alias
        write(path, library)
        ctypes.CDLL(str(path))


def write(path: Path, library: str) -> None:
    """Write an empty library whose SONAME is the file's name, and which needs ``library``."""
    path.write_bytes(_image(path.name, library))


def _image(soname: str, needed: str) -> bytes:
    """Return a shared library for x86-64 without code and symbols."""
    strings = b"\0" + soname.encode() + b"\0" + needed.encode() + b"\0"
    hashes = struct.pack("<4I", 1, 1, 0, 0)  # one bucket and one chain for the null symbol
    symbols = HEADER + 3 * PROGRAM_HEADER
    table = symbols + SYMBOL
    dynamic = table + len(hashes)
    entries = 8
    names = dynamic + entries * ENTRY
    size = names + len(strings)
    tags = (
        (SONAME, 1), (NEEDED, 2 + len(soname.encode())), (HASH, table), (STRTAB, names), (STRSZ, len(strings)),
        (SYMTAB, symbols), (SYMENT, SYMBOL), (END, 0),
    )  # fmt: skip
    identity = b"\x7fELF" + bytes([2, 1, 1]) + bytes(9)  # 64 bits, little-endian, version 1
    return b"".join([
        identity,
        struct.pack("<2HI3QI6H", SHARED_OBJECT, X86_64, 1, 0, HEADER, 0, 0, HEADER, PROGRAM_HEADER, 3, 0, 0, 0),
        struct.pack("<2I6Q", LOAD, READ | WRITE, 0, 0, 0, size, size, 4096),
        struct.pack("<2I6Q", DYNAMIC, READ | WRITE, dynamic, dynamic, dynamic, entries * ENTRY, entries * ENTRY, 8),
        struct.pack("<2I6Q", STACK, READ | WRITE, 0, 0, 0, 0, 0, 16),  # without it, the stack would become executable
        bytes(SYMBOL),
        hashes,
        *(struct.pack("<2Q", tag, value) for tag, value in tags),
        strings,
    ])  # fmt: skip
