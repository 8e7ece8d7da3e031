"""The flags of `python -m crepe_dist.bench --project`, and what they ask for."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path

from crepe_dist.benchmarking.projection import OVERLAP, Cluster, Job, Link
from crepe_dist.errors import UserError
from crepe_dist.files import read_json
from crepe_dist.settings.data_options import LARGEST_BATCH
from crepe_dist.settings.limits import real, whole

BATCH = 128
POSITIVE = real(0, 1e9, open_below=True)


def add(flags: argparse.ArgumentParser) -> None:
    group = flags.add_argument_group(
        "scaling on paper",
        "Instead of measuring all: predict throughput and efficiency of many processes from the step of one and the "
        "speed of the links. A link is full-duplex; hosts have one each to the others.",
    )
    group.add_argument("--project", metavar="N,N,…", help="world sizes, as 8,64,512")
    group.add_argument("--link-gbps", type=POSITIVE, default=100.0, metavar="G", help="between hosts; default: 100")
    group.add_argument("--link-latency-us", type=POSITIVE, default=20.0, metavar="U", help="a message; default: 20")
    group.add_argument(
        "--gpus-per-host", type=whole(1, 1024), default=8, metavar="N", help="processes on a host; default: 8"
    )
    group.add_argument("--intra-gbps", type=POSITIVE, default=1200.0, metavar="G", help="within a host; default: 1200")
    group.add_argument("--intra-latency-us", type=POSITIVE, default=5.0, metavar="U", help="a message; default: 5")
    group.add_argument(
        "--step-ms", type=POSITIVE, metavar="MS", help="computing a step; default: measured here and now"
    )
    group.add_argument("--measured", type=Path, metavar="FILE", help="take it from what --json wrote")
    group.add_argument(
        "--batch-per-process", type=whole(1, LARGEST_BATCH), default=BATCH, metavar="B", help=f"default: {BATCH}"
    )
    group.add_argument(
        "--gradient-bytes", type=whole(1, 10**15), metavar="N", help="default: the notebook's network, float32"
    )
    group.add_argument(
        "--overlap",
        type=real(0, 1),
        default=OVERLAP,
        metavar="F",
        help=f"part of the step beside which the all-reduce can run, 0 to 1; default: {OVERLAP}, what is left when the "
        "dense layers' gradients are ready; the other table has none, as with all gradients in one group",
    )


def refuse(given: argparse.Namespace) -> None:
    """Raises UserError if a flag was given that means something with ``--project`` only."""
    flags = argparse.ArgumentParser(add_help=False)
    add(flags)
    for name, default in vars(flags.parse_args([])).items():
        if getattr(given, name) != default:
            raise UserError(f"--{name.replace('_', '-')} goes with --project only", remedy="add --project 8,64,512")


def world_sizes(given: argparse.Namespace) -> list[int]:
    """What ``--project`` names.

    Raises:
        UserError: something else than positive whole numbers.
    """
    parts = [part.strip() for part in given.project.split(",")]
    if not all(part.isdecimal() and part.isascii() and len(part) < 8 and int(part) > 0 for part in parts):
        raise UserError(
            f"--project {given.project}: not a list of numbers of processes", remedy="give it as --project 8,64,512"
        )
    if given.json is not None:
        raise UserError(
            "--json does not go with --project, which measures nothing worth keeping", remedy="leave one of them out"
        )
    return [int(part) for part in parts]


def cluster(given: argparse.Namespace) -> Cluster:
    return Cluster(
        given.gpus_per_host,
        Link(given.intra_gbps * 1e9 / 8, given.intra_latency_us / 1e6),
        Link(given.link_gbps * 1e9 / 8, given.link_latency_us / 1e6),
    )


def job(given: argparse.Namespace, rate: Callable[[int], float], gradient: Callable[[], int]) -> Job:
    """The job that the flags describe; what they leave out comes from ``rate``, which measures documents a second at
    a batch, and ``gradient``, bytes.

    Raises:
        UserError: the file of ``--measured`` is missing or not one of ``--json``.
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
    """Documents that one process trains on in a second, as an earlier run wrote them."""
    try:
        rates = read_json(path)["rates"]
        rate = max(float(rate) for name, rate in rates.items() if name.startswith("train, ours, "))
    except OSError as error:
        raise UserError(
            f"--measured {path}: cannot be read", error.strerror or str(error), "name what --json wrote"
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"--measured {path}: has no rate of training", remedy="write it with `python -m crepe_dist.bench --json`"
        ) from error
    if not (rate > 0 and math.isfinite(rate)):
        raise UserError(f"--measured {path}: its rate of training is {rate}", remedy="measure again with --json")
    return rate
