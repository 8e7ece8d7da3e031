"""Command `supervise`: trains with several processes of this host and restarts them after a failure.

Usage: `python -m crepe_dist.supervise -np 4 …`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from crepe_dist import command

if __name__ == "__main__":
    command.end_on_signals()

from crepe_dist.distributed.control import Control
from crepe_dist.settings import flags as arguments
from crepe_dist.settings.config import parse
from crepe_dist.settings.fields import real, whole
from crepe_dist.supervising.driver import MAX_PROCESSES, Cluster, Driver

EXAMPLES = """\
  python -m crepe_dist.supervise -np 4 --data data/reviews             four processes
  python -m crepe_dist.supervise -np 2 --config configs/smoke.yaml     two, on the sample

All other flags are passed to crepe_dist.train. After a failure, the workers restart from the newest checkpoint. On
SIGTERM or Ctrl-C they save and stop; run the same command again to resume. Several hosts: docs/how-to/clusters.md.

exit codes: 0 done; 1 error in flags, data or installation; 75 stopped and saved; 130 interrupted; else that of the
failed worker
"""


def parser() -> arguments.Parser:
    result = arguments.parser("supervise", "Train with several processes, and restart them after a failure.", EXAMPLES)
    count, restarts, grace = whole(1, MAX_PROCESSES), whole(0, 10**9), real(0, 1e6)
    add = result.add_argument
    add("-np", "--processes", type=count, default=1, metavar="N", help="number of processes; default: 1")
    text = "restarts after failures; preemptions do not count; default: 10"
    add("--max-restarts", type=restarts, default=10, metavar="N", help=text)
    text = "time between asking a worker to stop and killing it; default: 30"
    add("--grace", type=grace, default=30.0, metavar="SECONDS", help=text)
    return result


def run(values: argparse.Namespace, worker: Sequence[str]) -> None:
    """Supervise workers, given the options and the arguments of Python for each worker."""
    with Control() as control, control.deferring():
        Driver(Cluster(), worker, values.processes, values.max_restarts, control, values.grace).run()


def main() -> None:
    values, rest = parser().parse_known_args(sys.argv[1:])
    parse(rest)  # a mistake in train's flags ends here, before any process starts
    run(values, ["-m", "crepe_dist.train", *rest])


if __name__ == "__main__":
    command.run(main)
