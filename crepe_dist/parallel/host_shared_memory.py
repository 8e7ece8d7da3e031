"""Memory that the processes of a host share: files in /dev/shm that are removed as soon as all have opened them."""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import secrets
import time
import weakref
from collections.abc import Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

from crepe_dist import hardware
from crepe_dist.distributed.process_group import ProcessGroup
from crepe_dist.errors import PeerLostError
from crepe_dist.native import library

FOLDER = hardware.SHARED_MEMORY
PREFIX = "crepe_dist-"
STALE_SECONDS = 60.0
POLL_SECONDS = 0.2  # interval between two checks that the others are alive
HUGE_PAGE = 2 << 20  # bytes
MAP_FIXED, MADV_COLLAPSE = 0x10, 25  # of Linux, which the module mmap lacks
MAP_FAILED = ctypes.c_void_p(-1).value
LIBC = ctypes.CDLL(None)
LIBC.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long)
LIBC.mmap.restype = ctypes.c_void_p
LIBC.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
LIBC.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)


class HostSharedMemory:
    """Memory of the processes of a host; the first process's first page holds a barrier.

    A process holds a lock on its file while it lives; the kernel releases the lock at its end.

    Args:
        pages: memory of each process, in the order of local ranks.
        files: their open files; none for a single process.
        rank: local rank of this process.
    """

    def __init__(self, segments: Sequence[Any], files: Sequence[int], local_rank: int) -> None:
        self.segments = segments
        self.local_rank = local_rank
        self._files = files
        self._barrier = ctypes.addressof(ctypes.c_char.from_buffer(segments[0]))
        self._round: int | None = None  # of the barrier, from `arrive` to the end of `wait`

    @cached_property
    def _functions(self) -> ctypes.CDLL:
        return library.functions()  # not for ``check``, which GPUs use without kernels for CPUs

    @property
    def num_processes(self) -> int:
        return len(self.segments)

    def arrive(self) -> None:
        """Tell the other processes of the host that this one has come to this point; see ``wait``."""
        self.wait()
        if self.num_processes > 1:
            self._round = self._functions.crepe_barrier_arrive(self._barrier, self.num_processes)

    def wait(self) -> None:
        """Wait until all processes of the host have come to the point of this one's last ``arrive``.

        Raises:
            PeerGone: one of them ended.
        """
        if self._round is None:
            return
        # Wait in short pieces, so that signals are handled and the end of a process is noticed.
        while not self._functions.crepe_barrier_wait(self._barrier, self._round, POLL_SECONDS):
            try:
                self.check_peers_alive()
            except PeerLostError:
                if not self._functions.crepe_barrier_wait(self._barrier, self._round, 0.0):
                    raise
                break  # it ended after it had arrived
        self._round = None

    def check_peers_alive(self) -> None:
        """Check that all processes of the host are there.

        Raises:
            PeerGone: one of them ended.
        """
        if any(rank != self.local_rank and _owner_is_gone(file) for rank, file in enumerate(self._files)):
            raise PeerLostError("another process of this host ended")

    def barrier(self) -> None:
        """Wait until all processes of the host have called it; raises as ``wait``."""
        self.arrive()
        self.wait()


def allocate_private(size: int) -> HostSharedMemory:
    """Allocate the memory of a process that shares it with no other."""
    pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    pages.madvise(mmap.MADV_HUGEPAGE)  # rows of tables are read in random order
    return HostSharedMemory([pages], (), 0)


def open_shared(group: ProcessGroup, host_ranks: Sequence[int], size: int) -> HostSharedMemory | None:
    """Create this rank's memory and open those of its host; every rank calls it.

    Args:
        host: ranks of this host, in the order of local ranks.
        size: bytes of each memory.

    Returns:
        The memory, or ``None`` on all ranks if one of them cannot share, because /dev/shm is too small (a container has
        64 MB by default) or belongs to another container.
    """
    remove_stale_files()
    created = _create_segment(size)
    files: list[int] = []
    try:
        names = group.all_gather_object(created and created[0].name, "shared memory")
        if None not in names:
            files, pages = _open_segments([names[rank] for rank in host_ranks], size)
            if 0 not in group.all_gather_object(len(pages), "shared memory opened"):
                own = pages[host_ranks.index(group.rank)]
                back_with_huge_pages(ctypes.addressof(own), size)
                return HostSharedMemory(pages, files, host_ranks.index(group.rank))
    finally:
        if created is not None:
            created[0].unlink(missing_ok=True)  # the memory lives until the last process ends, even if it is killed
    for file in files if created is None else [*files, created[1]]:
        os.close(file)  # otherwise it would keep the memory
    return None


def back_with_huge_pages(start: int, size: int) -> None:
    """Back memory that the process has written with huge pages where it can have them; rows are read in random order.

    An older Linux than 6.1 ignores it.
    """
    aligned = -(-start // HUGE_PAGE) * HUGE_PAGE
    LIBC.madvise(aligned, max(0, start + size - aligned), MADV_COLLAPSE)


def remove_stale_files() -> None:
    """Remove files of processes that were killed between creating and removing one."""
    for path in FOLDER.glob(f"{PREFIX}*"):
        with suppress(OSError):  # gone by now, in use, or another user's
            if time.time() - path.stat().st_mtime < STALE_SECONDS:
                continue
            with path.open("r+b") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()


def _owner_is_gone(file: int) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    fcntl.flock(file, fcntl.LOCK_UN)
    return True


def _create_segment(size: int) -> tuple[Path, int] | None:
    """Create a file of that size, locked until its descriptor is closed; ``None`` if that fails."""
    path = FOLDER / f"{PREFIX}{os.getpid()}-{secrets.token_hex(8)}"
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        os.posix_fallocate(descriptor, 0, size)  # otherwise a full /dev/shm would kill the process at the first write
    except OSError:
        path.unlink()
        os.close(descriptor)
        return None
    return path, descriptor


def _open_segments(names: Sequence[str], size: int) -> tuple[list[int], list[Any]]:
    """Open the memories of all processes; empty if one cannot be opened."""
    files: list[int] = []
    try:
        files.extend(os.open(FOLDER / name, os.O_RDWR) for name in names)  # keeps those before one that fails
        return files, [_map_segment(file, size) for file in files]
    except (OSError, ValueError):
        for file in files:
            os.close(file)
        return [], []


def _map_segment(file: int, size: int) -> Any:
    """Map a file at an address that huge pages can back, as an array of characters.

    Rows of tables are read in random order: with small pages a step takes half as long again. Files in /dev/shm have
    huge pages only if the mount says so, or if a mapping of them is collapsed.
    """
    if os.fstat(file).st_size < size:
        raise ValueError("the file is shorter than its mapping")
    protection, reserved = mmap.PROT_READ | mmap.PROT_WRITE, size + HUGE_PAGE
    start = LIBC.mmap(None, reserved, 0, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)
    if start == MAP_FAILED:
        raise OSError("no address space is left")
    aligned = -(-start // HUGE_PAGE) * HUGE_PAGE
    if LIBC.mmap(aligned, size, protection, mmap.MAP_SHARED | MAP_FIXED, file, 0) == MAP_FAILED:
        LIBC.munmap(start, reserved)
        raise OSError("the memory cannot be mapped")
    array = (ctypes.c_char * size).from_address(aligned)
    weakref.finalize(array, LIBC.munmap, start, reserved).atexit = False  # threads may use it until the end
    return array
