"""Flags of ``python -m crepe_dist.bench --project``."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from crepe_dist import invocation
from crepe_dist.benchmarking.projection import OVERLAP, Cluster, Job, Link
from crepe_dist.errors import UserError
from crepe_dist.files import finite, read_json
from crepe_dist.settings.data_options import LARGEST_BATCH
from crepe_dist.settings.limits import real, whole

BATCH = 128
POSITIVE = real(0, 1e9, open_below=True)


def add(flags: argparse.ArgumentParser) -> None:
    group = flags.add_argument_group(
        "scaling model",
        "Predict the throughput and efficiency of many processes from the step time of one and the speed of the links, "
        "instead of measuring. Links are full-duplex; each host has one link to the other hosts.",
    )
    group.add_argument("--project", metavar="N,N,…", help="world sizes, such as 8,64,512")
    group.add_argument(
        "--link-gbps", type=POSITIVE, default=100.0, metavar="G", help="bandwidth between hosts in Gbit/s; default: 100"
    )
    group.add_argument(
        "--link-latency-us",
        type=POSITIVE,
        default=20.0,
        metavar="U",
        help="latency between hosts in µs per message; default: 20",
    )
    group.add_argument(
        "--gpus-per-host", type=whole(1, 1024), default=8, metavar="N", help="processes per host; default: 8"
    )
    group.add_argument(
        "--intra-gbps",
        type=POSITIVE,
        default=1200.0,
        metavar="G",
        help="bandwidth within a host in Gbit/s; default: 1200",
    )
    group.add_argument(
        "--intra-latency-us",
        type=POSITIVE,
        default=5.0,
        metavar="U",
        help="latency within a host in µs per message; default: 5",
    )
    group.add_argument(
        "--step-ms", type=POSITIVE, metavar="MS", help="computation per step in ms; default: measured on this machine"
    )
    group.add_argument("--measured", type=Path, metavar="FILE", help="read the step time from a file written by --json")
    group.add_argument(
        "--batch-per-process",
        type=whole(1, LARGEST_BATCH),
        default=BATCH,
        metavar="B",
        help=f"documents per process and step; default: {BATCH}",
    )
    group.add_argument(
        "--gradient-bytes",
        type=whole(1, 10**15),
        metavar="N",
        help="bytes to all-reduce; default: the notebook's network in float32",
    )
    group.add_argument(
        "--overlap",
        type=real(0, 1),
        default=OVERLAP,
        metavar="F",
        help=f"share of the step that the all-reduce can overlap, 0 to 1; default: {OVERLAP}, the share that remains "
        "when the gradients of the dense layers are ready. A second table assumes no overlap, as with all gradients in "
        "one group",
    )


def refuse(given: argparse.Namespace) -> None:
    """Refuse flags that require ``--project``.

    Raises:
        UserError: such a flag was given.
    """
    flags = argparse.ArgumentParser(add_help=False)
    add(flags)
    for name, default in vars(flags.parse_args([])).items():
        if getattr(given, name) != default:
            raise UserError(f"--{name.replace('_', '-')} requires --project", remedy="add --project 8,64,512")


def world_sizes(given: argparse.Namespace) -> list[int]:
    """Parse the world sizes given by ``--project``.

    Raises:
        UserError: one of them is not a positive whole number.
    """
    parts = [part.strip() for part in given.project.split(",")]
    if not all(part.isdecimal() and part.isascii() and len(part) < 8 and int(part) > 0 for part in parts):
        raise UserError(
            f"--project {given.project}: not a list of world sizes", remedy="write it like --project 8,64,512"
        )
    if given.json is not None:
        raise UserError("--json and --project exclude each other", "--project measures nothing", "remove one of them")
    return [int(part) for part in parts]


def cluster(given: argparse.Namespace) -> Cluster:
    return Cluster(
        given.gpus_per_host,
        Link(given.intra_gbps * 1e9 / 8, given.intra_latency_us / 1e6),
        Link(given.link_gbps * 1e9 / 8, given.link_latency_us / 1e6),
    )


def job(given: argparse.Namespace, rate: Callable[[int], float], gradient: Callable[[], int]) -> Job:
    """Make the job that the flags describe.

    Args:
        rate: function that measures documents a second for a batch size, used unless a flag gives the step time.
        gradient: function that returns the bytes to all-reduce, used unless a flag gives them.

    Raises:
        UserError: the file of ``--measured`` is missing or was not written by ``--json``.
    """
    batch = given.batch_per_process
    if given.step_ms is not None:
        compute = given.step_ms / 1000
    elif given.measured is not None:
        compute = batch / measured_rate(given.measured)
    else:
        compute = batch / rate(batch)
    return Job(compute, batch, gradient() if given.gradient_bytes is None else given.gradient_bytes)


def measured_rate(path: Path) -> float:
    """Read the training throughput of one process, in documents a second, from a file written by ``--json``."""
    try:
        rates = read_json(path)["rates"]
        rate = max(finite(rate) for name, rate in rates.items() if name.startswith("train, ours, "))
    except OSError as error:
        raise UserError(
            f"--measured {path}: cannot be read", error.strerror or str(error), "name a file written by --json"
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"--measured {path}: has no training rate", remedy=f"write it with `{invocation.typed('bench')} --json`"
        ) from error
    if rate <= 0:
        raise UserError(f"--measured {path}: its training rate is {rate}", remedy="measure again with --json")
    return rate
