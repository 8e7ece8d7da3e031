"""Checks of `doctor` if a launcher has started it in several processes: all hosts of a job, and their network."""

import os
import platform
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from crepe_dist import hardware
from crepe_dist.commands.doctor import (
    Check,
    check_disk,
    check_gpus,
    check_kernels,
    default_network,
    nearest_folder,
    print_check,
)
from crepe_dist.cuda import driver
from crepe_dist.distributed.init_process_group import init_process_group
from crepe_dist.distributed.process_group import ProcessGroup
from crepe_dist.distributed.signals import SignalHandler
from crepe_dist.distributed.watchdog import Watchdog
from crepe_dist.errors import ExitCode, UserError, escape_to_one_line
from crepe_dist.files.folders import temporary_folder
from crepe_dist.formatting import align_columns, join_head, pluralize, size
from crepe_dist.runs.run_dir import RunDir
from crepe_dist.training.model_setup import select_backend
from crepe_dist.version import __version__

# Number of bytes that a host sends in a step. With two hosts and the default settings, it is 4 MB on agnews_part.
STEP_BYTES = 4 << 20
SMALL_BYTES = 100  # Size of the messages whose time is shown as the latency.
WRITE_BYTES = 32 << 20  # Size of the file that each host writes into the folder of runs.
TRIES = 5  # Number of repetitions of each measurement. The fastest one counts.
TIMEOUT_SECONDS = 120.0  # Time limit of each check. A network file system may block a process forever.
MAX_CLOCK_SECONDS = 1.0  # Largest difference between two clocks that is not reported.
SLOW_FACTOR = 2.0  # A pair of hosts is slow if it takes this number of times the median of all pairs.
SLOW_SECONDS = 0.001  # Smaller differences are noise.
MAX_LOCAL_RANKS = 8  # Number of ranks whose connections are measured if all ranks are on one host.
MAX_SHOWN = 8  # Maximum number of ranks in a cell or a message, and of slow pairs.
MEASURED = ("clock", "write", "latency", "bandwidth")  # Columns that may differ between the ranks of a host.
SHARE_HINT = "choose a --run-dir that all hosts share and may write to"
LOCKS_HINT = "mount the file system with locks (NFS: without nolock and local_lock; Lustre: with flock)"
NETWORK_HINT = "compare the network cards, cables and switches of these hosts; MASTER_ADDR chooses the network"


def run_in_group(run_dir: Path) -> None:
    """Check all hosts of the job. Rank 0 prints the results. Every rank must call this function.

    All ranks exit with the same code: 0 if the processes can train together, otherwise ``ExitCode.ERROR``.
    """
    with SignalHandler() as control:
        group = init_process_group()
        with Watchdog(control, TIMEOUT_SECONDS, group.rank) as watchdog:
            watchdog.remedy = "check the host of that process: its network, its disks and its network file systems"
            watchdog.processes = group.all_gather_json(watchdog.identity(), "processes")
            watchdog.late_rank, group.heartbeat = lambda: group.late_rank, watchdog.heartbeat
            # The group is not used as a context manager, which would end the processes if their versions differ.
            reports = group.all_gather_json(_check_rank(group, run_dir), "doctor")
            rows, checks = summarize(reports, group.host_names)
            problems = [f"{check.name}: {check.message}" for check in checks if check.level == "problem"]
            if group.is_root:
                print(*map(escape_to_one_line, align_columns(rows)), sep="\n")
                for check in checks:
                    print_check(check)
                hosts = f"{pluralize(group.size, 'process', 'processes')} on {pluralize(len(group.hosts), 'host')}"
                ready = f"ready: {hosts} can train together (not tried)"
                print(f"not ready: {escape_to_one_line('; '.join(problems))}" if problems else ready, flush=True)
            group.all_gather_json(0, "exit")  # Launchers kill the other processes when the first one fails.
            group.close()
    if problems:
        sys.exit(ExitCode.ERROR)


def _check_rank(group: ProcessGroup, run_dir: Path) -> dict[str, Any]:
    """Run all checks of this rank, and those that all ranks run together. Return a report for ``summarize``."""
    kernels, version = check_kernels(), driver.driver_version()
    gpus = Counter(driver.gpu_name(gpu) for gpu in range(driver.gpu_count()))
    cells = {
        "Python": platform.python_version(),
        "crepe_dist": __version__,
        "processor": hardware.processor(),
        "kernels": kernels.message,
        "GPUs": ", ".join(f"{count} × {name}" for name, count in gpus.items()) or "none",
        "driver": f"CUDA {driver.dotted(version)}" if version else "–",
        "run folder": "–",
        **dict.fromkeys(MEASURED, "–"),
    }
    checks, pairs, all_to_all = [kernels, *check_gpus(), check_disk(nearest_folder(run_dir))], {}, []

    def collect(name: str, function: Callable[[], object]) -> bool:
        """Add the error of a function to the checks. Return whether there was none."""
        group.heartbeat()
        try:
            function()
        except UserError as error:
            if error.code != ExitCode.ERROR and not error.on_all_ranks:  # A message was damaged.
                raise
            checks.append(Check(name, f"{error.what}: {error.why}".rstrip(": "), "problem", error.remedy))
            return False
        return True

    if collect("versions", group.check_versions):  # Otherwise, the ranks may run different programs.
        collect("kernels", lambda: select_backend("auto", *default_network(), group))
        is_shared = collect("run folder", lambda: cells.update(write=_check_folder(group, run_dir)))
        cells["run folder"] = "ok" if is_shared else "problem"
        offset = clock_offset(group)
        cells["clock"] = f"{round(1000 * offset):+,} ms"
        if abs(offset) > MAX_CLOCK_SECONDS:
            what = f"the clock is {abs(offset):.0f} s {'ahead of' if offset > 0 else 'behind'} the clock of rank 0"
            checks.append(Check("clock", what, "note", "synchronise the clocks (NTP, chrony)"))
        everyone = {*range(group.size)} - {group.rank}
        all_to_all = [_time_exchange(group, everyone, count) for count in (SMALL_BYTES, STEP_BYTES // group.size)]
        pairs = _measure_pairs(group)
    return {"cells": cells, "checks": checks, "pairs": [*pairs.items()], "all_to_all": all_to_all}


def summarize(reports: Sequence[dict[str, Any]], hosts: Sequence[str]) -> tuple[list[list[str]], list[Check]]:
    """Return the rows of the table, and the checks below it.

    Ranks of a host share a row, which shows the measurements of the first of them, unless their other cells differ.

    Args:
        reports: Result of ``_check_rank`` for each rank.
        hosts: Host of each rank.
    """
    rows: dict[tuple[str, ...], list[int]] = {}
    ranks_of: dict[Check, list[str]] = {}
    for rank, (host, report) in enumerate(zip(hosts, reports)):
        key = (host, *(cell for column, cell in report["cells"].items() if column not in MEASURED))
        rows.setdefault(key, []).append(rank)
        for check in (Check(*values) for values in report["checks"]):
            if check.level != "ok":
                ranks_of.setdefault(check, []).append(f"rank {rank} (host {host})")
    pairs = _pair_seconds([dict(report["pairs"]) for report in reports])
    table = [["ranks", "host", *reports[0]["cells"]]]
    for (host, *_), ranks in rows.items():
        cells = reports[ranks[0]]["cells"]
        if own := [seconds for pair, seconds in pairs.items() if ranks[0] in pair]:
            cells["latency"], cells["bandwidth"] = _speed([*map(median, zip(*own))])
        table.append([join_head([*map(str, ranks)], MAX_SHOWN), host, *cells.values()])
    checks = [
        check
        if len(ranks) == len(hosts)
        else check._replace(message=f"{check.message} [{join_head(ranks, MAX_SHOWN)}]")
        for check, ranks in ranks_of.items()
    ]
    if reports[0]["all_to_all"]:
        small, step = (_fastest(times) for times in zip(*(report["all_to_all"] for report in reports)))
        what = f"all-to-all of {size(STEP_BYTES)} per process: {1000 * step:.1f} ms; of {SMALL_BYTES} bytes: "
        checks.append(Check("network", f"{what}{1000 * small:.2f} ms"))
    return table, checks + _slow_pairs(pairs, hosts)


def _fastest(times: Iterable[Sequence[float]]) -> float:
    """Return the time of the fastest try. A try is over when its last rank is ready.

    Args:
        times: For each rank, the time of each try.
    """
    fastest: float = min(map(max, zip(*times)))
    return fastest


def _pair_seconds(times: Sequence[dict[int, list[list[float]]]]) -> dict[tuple[int, int], list[float]]:
    """Return the seconds for messages of ``SMALL_BYTES`` and ``STEP_BYTES`` for each pair of ranks.

    Args:
        times: Result of ``_measure_pairs`` of each rank.
    """
    return {
        (first, second): [_fastest(sides) for sides in zip(own, times[second][first])]
        for first, partners in enumerate(times)
        for second, own in partners.items()
        if first < second
    }


def _slow_pairs(pairs: dict[tuple[int, int], list[float]], hosts: Sequence[str]) -> list[Check]:
    """Return a note that names the pairs of hosts that are ``SLOW_FACTOR`` times as slow as the median."""
    usual = [*map(median, zip(*pairs.values()))]
    slow = []
    for (first, second), seconds in sorted(pairs.items(), key=lambda pair: -pair[1][1]):
        is_slow = any(value > SLOW_FACTOR * mid and value - mid > SLOW_SECONDS for value, mid in zip(seconds, usual))
        if is_slow and hosts[first] != hosts[second]:
            slow.append(f"{hosts[first]} – {hosts[second]} ({', '.join(_speed(seconds))})")
    what = f"slow: {join_head(slow, MAX_SHOWN)}; the median is {', '.join(_speed(usual))}" if slow else ""
    return [Check("network", what, "note", NETWORK_HINT)] if slow else []


def _speed(seconds: Sequence[float]) -> tuple[str, str]:
    """Return the latency and the bandwidth of a pair."""
    return f"{1000 * seconds[0]:.2f} ms", f"{size(round(STEP_BYTES / seconds[1]))}/s"


def _check_folder(group: ProcessGroup, run_dir: Path) -> str:
    """Return the speed at which this host writes into the folder of runs. Every rank must call this function.

    Raises:
        UserError: Rank 0 cannot write into the folder, or the folder of this rank is another one, has no locks, or is
            not writable.
    """
    with ExitStack() as stack:

        def create() -> str:
            parent = nearest_folder(run_dir)
            try:
                # Rank 0 locks this folder, like the folder of a run.
                return str(parent / stack.enter_context(temporary_folder(parent)).name)
            except OSError as error:
                raise UserError(f"{parent} is not writable", error.strerror or str(error), SHARE_HINT) from error

        folder = Path(group.broadcast_json(group.run_on_rank0("run folder", create), "run folder"))
        parent = folder.parent.absolute()
        try:
            if not folder.is_dir():
                raise UserError(f"{parent} is not the same folder as on rank 0", remedy=SHARE_HINT)
            if not group.is_root and _can_lock(folder):
                raise UserError(f"the lock of rank 0 in {parent} has no effect on this host", remedy=LOCKS_HINT)
            return f"{size(round(_write_speed(folder / str(group.rank))))}/s" if group.local_rank == 0 else "–"
        except OSError as error:
            raise UserError(f"{parent} cannot be used", error.strerror or str(error), SHARE_HINT) from error
        finally:
            group.all_gather_json(0, "run folder")  # Rank 0 removes the folder when no rank needs it any more.


def _can_lock(folder: Path) -> bool:
    with suppress(UserError), RunDir(folder).lock():
        return True
    return False


def _write_speed(path: Path) -> float:
    """Return the number of bytes per second at which this host writes a file to the disk."""
    content = np.random.default_rng().bytes(WRITE_BYTES)  # Some file systems compress.
    start = time.perf_counter()
    with path.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
    return WRITE_BYTES / (time.perf_counter() - start)


def clock_offset(group: ProcessGroup) -> float:
    """Return by how many seconds this rank's clock is ahead of rank 0's clock. Every rank must call this function.

    Rank 0 reads its clock between the two readings of this rank, as in the Network Time Protocol.
    """
    measured = []
    for _ in range(TRIES):
        start = time.time()
        group.all_gather_json(0, "clock")
        reference = group.all_gather_json(time.time(), "clock")[0]
        end = time.time()
        measured.append((end - start, (start + end) / 2 - reference))
    return 0.0 if group.is_root else min(measured)[1]


def _measure_pairs(group: ProcessGroup) -> dict[int, list[list[float]]]:
    """Measure the connections between the first ranks of all hosts. Every rank must call this function.

    If all ranks are on one host, measure the connections between its first ``MAX_LOCAL_RANKS`` ranks.

    Returns:
        For each partner of this rank, the seconds of each try, for messages of ``SMALL_BYTES`` and ``STEP_BYTES``.
    """
    times: dict[int, list[list[float]]] = {}
    ranks = [host[0] for host in group.hosts]
    for partners in rounds(ranks if len(ranks) > 1 else group.hosts[0][:MAX_LOCAL_RANKS]):
        peers = {partners[group.rank]} if group.rank in partners else set()
        seconds = [_time_exchange(group, peers, count) for count in (SMALL_BYTES, STEP_BYTES)]
        times.update(dict.fromkeys(peers, seconds))
    return times


def rounds(ranks: Sequence[int]) -> Iterator[dict[int, int]]:
    """Yield the partner of each rank in each round of a tournament. All ranks meet once."""
    ring = [*ranks, *[-1] * (len(ranks) % 2)]  # The partner of -1 has no partner in this round.
    for _ in ring[1:]:
        yield {rank: partner for rank, partner in zip(ring, reversed(ring)) if min(rank, partner) >= 0}
        ring.insert(1, ring.pop())


def _time_exchange(group: ProcessGroup, peers: set[int], count: int) -> list[float]:
    """Exchange messages of ``count`` bytes with the peers of this rank. Return the number of seconds of each try."""
    message, times = np.zeros(count, np.uint8), []
    for _ in range(TRIES):
        group.all_gather_json(0, "start")
        group.heartbeat()
        start = time.perf_counter()
        group.exchange(dict.fromkeys(peers, message), "speed")
        times.append(time.perf_counter() - start)
    return times
