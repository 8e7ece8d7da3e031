"""Memory that the processes of a host share. It consists of files in /dev/shm.

Each process creates one file. The files are removed as soon as all processes of the host have opened them.
"""

import ctypes
import fcntl
import mmap
import os
import secrets
import sys
import time
import weakref
from collections.abc import Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

from crepe_dist import formatting, hardware
from crepe_dist.distributed.process_group import ProcessGroup
from crepe_dist.errors import PeerLostError
from crepe_dist.native import library

FOLDER = hardware.SHARED_MEMORY
PREFIX = "crepe_dist-"  # Prefix of the names of this module's files in FOLDER.
STALE_SECONDS = 60.0  # Minimum age of a file that ``remove_stale_files`` removes.
POLL_SECONDS = 0.2  # Seconds between two checks that the other processes are alive.
HUGE_PAGE = 2 << 20  # Size of a huge page, in bytes.
MAP_FIXED, MADV_COLLAPSE = 0x10, 25  # Linux constants that Python's mmap module does not define.
MAP_FAILED = ctypes.c_void_p(-1).value
LIBC = ctypes.CDLL(None)
LIBC.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long)
LIBC.mmap.restype = ctypes.c_void_p
LIBC.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
LIBC.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)


class HostSharedMemory:
    """Memory segments of all processes of a host. The first page of the first segment contains a barrier.

    Each process holds a lock on its file for as long as it runs. The kernel releases the lock when the process ends, so
    the other processes can detect that the process has ended.

    Args:
        segments: Memory segment of each process, in the order of local ranks.
        files: File descriptors of the segments, in the same order. The sequence is empty for a process that shares no
            memory.
        local_rank: Local rank of this process.
    """

    def __init__(self, segments: Sequence[Any], files: Sequence[int], local_rank: int) -> None:
        self.segments = segments
        self.local_rank = local_rank
        self._files = files
        self._barrier = ctypes.addressof(ctypes.c_char.from_buffer(segments[0]))
        self._round: int | None = None  # Round of the barrier, between ``arrive`` and the end of ``wait``.

    @cached_property
    def _functions(self) -> ctypes.CDLL:
        # The kernels are loaded at the first use. A process on a GPU calls only ``check_peers_alive``, and its
        # installation may have no CPU kernels.
        return library.functions()

    @property
    def num_processes(self) -> int:
        return len(self.segments)

    def arrive(self) -> None:
        """Signal to the other processes of the host that this process has arrived at the barrier. Do not wait for them.

        If this process has called ``arrive`` before, first wait until all processes have arrived at that barrier.
        """
        self.wait()
        if self.num_processes > 1:
            self._round = self._functions.crepe_barrier_arrive(self._barrier, self.num_processes)

    def wait(self) -> None:
        """Wait until all processes of the host have arrived at the barrier, if this process has called ``arrive``.

        Raises:
            PeerLostError: One of the processes ended.
        """
        if self._round is None:
            return
        # Wait in short intervals, so that signals are handled and the end of a process is detected.
        while not self._functions.crepe_barrier_wait(self._barrier, self._round, POLL_SECONDS):
            try:
                self.check_peers_alive()
            except PeerLostError:
                # The process may have arrived at the barrier before it ended. In this case, the wait has succeeded.
                if not self._functions.crepe_barrier_wait(self._barrier, self._round, 0.0):
                    raise
                break
        self._round = None

    def check_peers_alive(self) -> None:
        """Check that all processes of the host are alive.

        Raises:
            PeerLostError: One of the processes ended.
        """
        if any(rank != self.local_rank and _has_owner_ended(file) for rank, file in enumerate(self._files)):
            raise PeerLostError("another process of this host ended")

    def barrier(self) -> None:
        """Wait until all processes of the host have called this method.

        Raises:
            PeerLostError: One of the processes ended.
        """
        self.arrive()
        self.wait()


def allocate_private(size: int) -> HostSharedMemory:
    """Allocate ``size`` bytes of memory for a process that shares no memory."""
    segment = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    segment.madvise(mmap.MADV_HUGEPAGE)  # Embedding rows are read in random order, so huge pages save TLB misses.
    return HostSharedMemory([segment], (), 0)


def open_shared(group: ProcessGroup, host_ranks: Sequence[int], size: int, consequence: str) -> HostSharedMemory | None:
    """Create this rank's segment, and open the segments of its host. Every rank must call this function.

    Args:
        host_ranks: Ranks of this host, in the order of local ranks.
        size: Bytes of each segment.
        consequence: What follows if memory cannot be shared, for the note.

    Returns:
        The memory, or ``None`` on all ranks if any rank cannot share memory. The /dev/shm of that rank may be too small
        (a container has 64 MB by default) or may belong to another container. Rank 0 then prints a note.
    """
    remove_stale_files()
    created = _create_segment(size)
    files: list[int] = []
    try:
        names = group.all_gather_json(created and created[0].name, "shared memory")
        opened = []
        if None not in names:
            files, segments = _open_segments([names[rank] for rank in host_ranks], size)
            opened = group.all_gather_json(len(segments), "shared memory opened")
            if 0 not in opened:
                local_rank = host_ranks.index(group.rank)
                back_with_huge_pages(ctypes.addressof(segments[local_rank]), size)
                return HostSharedMemory(segments, files, local_rank)
        if group.is_root:
            failed = names.index(None) if None in names else opened.index(0)
            why, remedy = _why_unshared(size, len(host_ranks), is_full=None in names)
            what = f"the processes of {group.host_names[failed]} cannot share memory, so {consequence}"
            print(f"note: {what}\n  why: {why}\n  do:  {remedy}", file=sys.stderr)
    finally:
        if created is not None:
            # The memory lives until the last process ends. Because the file is removed now, the memory is freed even
            # if all processes are killed.
            created[0].unlink(missing_ok=True)
    for file in files if created is None else [*files, created[1]]:
        os.close(file)  # An open file would keep the memory alive.
    return None


def _why_unshared(size: int, num_processes: int, *, is_full: bool) -> tuple[str, str]:
    """Return why the processes of a host cannot share memory, and a remedy."""
    if is_full:
        why = f"{FOLDER} has no space for {formatting.size(size * num_processes)}"
        return why, f"make {FOLDER} larger (docker run --shm-size, sizeLimit in Kubernetes)"
    return f"the processes see different {FOLDER}, as in different containers", "use one container per host"


def back_with_huge_pages(start: int, size: int) -> None:
    """Replace the pages of a memory range by huge pages if possible, because embedding rows are read in random order.

    The pages must already exist. Linux before 6.1 ignores the request.
    """
    aligned = -(-start // HUGE_PAGE) * HUGE_PAGE
    LIBC.madvise(aligned, max(0, start + size - aligned), MADV_COLLAPSE)


def remove_stale_files() -> None:
    """Remove the files of processes that were killed before they could remove them."""
    for path in FOLDER.glob(f"{PREFIX}*"):
        # The file has been removed, its process still runs, or the file belongs to another user.
        with suppress(OSError):
            if time.time() - path.stat().st_mtime < STALE_SECONDS:
                continue
            with path.open("r+b") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()


def _has_owner_ended(file: int) -> bool:
    """Return whether the process that created a file has ended.

    A process that has ended no longer holds its lock on the file.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    fcntl.flock(file, fcntl.LOCK_UN)
    return True


def _create_segment(size: int) -> tuple[Path, int] | None:
    """Create a file of ``size`` bytes, and lock it until its descriptor is closed. Return ``None`` if that fails."""
    path = FOLDER / f"{PREFIX}{os.getpid()}-{secrets.token_hex(8)}"
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        # Reserve the memory now. Otherwise a full /dev/shm would kill the process (SIGBUS) at the first write.
        os.posix_fallocate(descriptor, 0, size)
    except OSError:
        path.unlink()
        os.close(descriptor)
        return None
    return path, descriptor


def _open_segments(names: Sequence[str], size: int) -> tuple[list[int], list[Any]]:
    """Open and map the files of all processes of the host. Return the file descriptors and the mapped segments.

    Both lists are empty if a file cannot be opened or mapped.
    """
    files: list[int] = []
    try:
        # If opening a file fails, ``extend`` has already stored the files that were opened before, so they are closed.
        files.extend(os.open(FOLDER / name, os.O_RDWR) for name in names)
        return files, [_map_segment(file, size) for file in files]
    except (OSError, ValueError):
        for file in files:
            os.close(file)
        return [], []


def _map_segment(file: int, size: int) -> Any:
    """Map a file at an address that is aligned to huge pages, and return the mapping as a ctypes array of characters.

    Embedding rows are read in random order, so a step takes 50 % longer with small pages than with huge pages. Files in
    /dev/shm have huge pages only if a mount option requests them, or after ``back_with_huge_pages``.
    """
    if os.fstat(file).st_size < size:
        raise ValueError("the file is shorter than its mapping")
    protection, reserved = mmap.PROT_READ | mmap.PROT_WRITE, size + HUGE_PAGE
    # Reserve an address range that is one huge page longer than the file. Map the file at its first aligned address.
    start = LIBC.mmap(None, reserved, 0, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)
    if start == MAP_FAILED:
        raise OSError("no address space is left")
    aligned = -(-start // HUGE_PAGE) * HUGE_PAGE
    if LIBC.mmap(aligned, size, protection, mmap.MAP_SHARED | MAP_FIXED, file, 0) == MAP_FAILED:
        LIBC.munmap(start, reserved)
        raise OSError("the memory cannot be mapped")
    segment = (ctypes.c_char * size).from_address(aligned)
    # Do not unmap the memory at the exit of the interpreter, because other threads may use it until the process ends.
    weakref.finalize(segment, LIBC.munmap, start, reserved).atexit = False
    return segment
