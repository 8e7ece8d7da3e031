"""All-reduce in the shared memory of a host, and its fallback to the backend of the process group."""

import math
import os
import re
import shlex
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from crepe_dist.errors import ExitCode
from crepe_dist.parallel import host_shared_memory
from tests.conftest import needs_kernels, run
from tests.helpers.programs import program, supervised
from tests.multihost.network import needs_namespaces


def leftovers() -> set[Path]:
    """Return the files that stay in /dev/shm for ten seconds.

    A file of another run disappears earlier, as soon as all processes of that run have opened it.
    """
    files, deadline = set(Path("/dev/shm").glob("crepe_dist-*")), time.monotonic() + 10
    while files and time.monotonic() < deadline:
        time.sleep(0.1)
        files &= set(Path("/dev/shm").glob("crepe_dist-*"))
    return files


@needs_kernels  # The kernels sum the gradients.
def test_sums_are_correct_and_bit_identical_on_all_ranks(tmp_path):
    printed = run(supervised("parallel/all_reduce_worker.py", processes=3), tmp_path)
    assert printed.count("all well") == printed.count("summed by shared memory\n") == 3
    assert not leftovers()


@needs_kernels
def test_all_ranks_use_horovod_if_one_of_them_cannot_share_memory(tmp_path):
    printed = run(program("parallel/all_reduce_worker.py", "unshared", processes=2), tmp_path)
    assert printed.count("all well") == printed.count("summed by Horovod\n") == 2
    assert printed.count("the processes see different /dev/shm, as in different containers") == 1
    assert not leftovers()


@pytest.mark.parametrize(("file", "opened"), [(None, 2), ("missing", 2), ("own", 0)])
def test_memory_that_cannot_be_shared_is_released(tmp_path, monkeypatch, file, opened):
    def gather(value, name):
        other_value = opened if name == "shared memory opened" else value if file == "own" else file
        return [value, other_value]

    monkeypatch.setattr(host_shared_memory, "FOLDER", tmp_path)
    group: Any = SimpleNamespace(rank=0, is_root=True, host_names=["here", "here"], all_gather_json=gather)
    descriptors = os.listdir("/proc/self/fd")  # An open file keeps its memory, even if the file is removed.
    assert host_shared_memory.open_shared(group, [0, 1], 1 << 20, "they wait") is None
    assert os.listdir("/proc/self/fd") == descriptors
    assert not list(tmp_path.iterdir())


@needs_kernels
@needs_namespaces
def test_a_small_dev_shm_is_named_with_the_size_that_is_needed(tmp_path):
    """The memory that the message names suffices."""
    words = supervised("parallel/all_reduce_worker.py", processes=2)
    mount = "mount -t tmpfs -o size={} none /dev/shm && exec {}"
    printed = run(["unshare", "--mount", "sh", "-c", mount.format("4k", shlex.join(words))], tmp_path)
    # The lines may be apart, because the note and the output of the ranks come through different pipes.
    match = re.search(r"why: /dev/shm has no space for ([\d.]+) kB\n", printed)
    assert match, printed
    assert "  do:  make /dev/shm larger" in printed
    enough = f"{math.ceil(float(match[1]) + 0.1)}000"
    printed = run(["unshare", "--mount", "sh", "-c", mount.format(enough, shlex.join(words))], tmp_path)
    assert printed.count("summed by shared memory\n") == 2


def test_peers_with_gpus_are_checked_without_cpu_kernels(monkeypatch):
    monkeypatch.setenv("CREPE_DIST_KERNELS", "none")
    host_shared_memory.allocate_private(1 << 12).check_peers_alive()


@needs_kernels
def test_the_end_of_a_process_is_detected_even_if_the_launcher_does_not_report_it(tmp_path):
    dead = 2
    printed = run(program("parallel/killed_worker.py", dead, processes=4), tmp_path)
    for rank in range(4):
        assert f"rank {rank} ended with {-9 if rank == dead else ExitCode.PEER_GONE}\n" in printed, printed
        line = (
            rf"\[rank {rank}\] stopped because another process ended .*, at \d+-\d+-\d+ \d+:\d+:\d+; see the messages"
        )
        assert bool(re.search(line, printed)) == (rank != dead), printed


def test_only_stale_files_of_ended_processes_are_removed(tmp_path, monkeypatch):
    monkeypatch.setattr(host_shared_memory, "FOLDER", tmp_path)
    stale, recent, foreign = (tmp_path / name for name in ("crepe_dist-1-stale", "crepe_dist-2-recent", "something"))
    for path in (stale, recent, foreign):
        path.touch()
    created = host_shared_memory._create_segment(100)
    assert created is not None
    own, _ = created
    for path in (stale, foreign, own):
        os.utime(path, (0, 0))
    host_shared_memory.remove_stale_files()
    assert sorted(tmp_path.iterdir()) == sorted([recent, foreign, own])
