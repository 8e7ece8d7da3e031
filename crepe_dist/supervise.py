"""Command `supervise`: trains with several processes of this host and restarts them after a failure.

Usage: `python -m crepe_dist.supervise -np 4 …`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from crepe_dist import startup

if __name__ == "__main__":
    startup.end_on_signals()

from crepe_dist import command, invocation
from crepe_dist.distributed.control import Control
from crepe_dist.errors import UserError
from crepe_dist.settings import arguments
from crepe_dist.settings.config import parse
from crepe_dist.settings.limits import near, real, whole
from crepe_dist.supervising.driver import MAX_PROCESSES, Driver, Ranks

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
    result.add_argument(
        "-np",
        "--processes",
        type=whole(1, MAX_PROCESSES),
        default=1,
        metavar="N",
        help="number of processes; default: 1",
    )
    result.add_argument(
        "--max-restarts",
        type=whole(0, 10**9),
        default=10,
        metavar="N",
        help="restarts after failures; preemptions do not count; default: 10",
    )
    result.add_argument(
        "--grace",
        type=real(0, 1e6),
        default=30.0,
        metavar="SECONDS",
        help="time between asking a worker to stop and killing it; default: 30",
    )
    return result


def run(values: argparse.Namespace, worker: Sequence[str]) -> None:
    """Supervise workers, given the options and the arguments of Python for each worker."""
    with Control() as control, control.deferring():
        Driver(Ranks(), worker, values.processes, values.max_restarts, control, grace=values.grace).run()


def main() -> None:
    values, rest = parser().parse_known_args(sys.argv[1:])
    _check(rest)
    run(values, ["-m", "crepe_dist.train", *rest])


def _check(rest: Sequence[str]) -> None:
    """Check train's flags before any process starts.

    Raises:
        UserError: invalid flags; the remedy also suggests similar flags of this command.
    """
    for flag in ("-H", "--hosts", "--on"):
        if flag in rest:
            raise UserError(
                f"supervise has no option {flag}",
                "its processes run on this host",
                f"on several: {invocation.typed('train')} --on ray --processes N (docs/how-to/clusters.md)",
            )
    flags = [flag for action in parser()._actions for flag in action.option_strings]
    try:
        parse(rest)
    except UserError as error:
        similar = [near(argument.partition("=")[0], flags) for argument in rest if argument in error.what]
        error.remedy = next(filter(None, similar), error.remedy)
        raise


if __name__ == "__main__":
    command.run(main)
