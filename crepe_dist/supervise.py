"""Command `supervise`: trains with several processes and restarts them after a failure.

Usage: `python -m crepe_dist.supervise -np 4 …`.
"""

from __future__ import annotations

import shlex
import signal
import sys
from collections.abc import Sequence

from crepe_dist import startup

if __name__ == "__main__":
    startup.end_on_signals()

from crepe_dist import command
from crepe_dist.distributed.hosts import LOOPBACK, Host, interface_address, parse_hosts
from crepe_dist.errors import UserError
from crepe_dist.settings import arguments
from crepe_dist.settings.config import parse
from crepe_dist.settings.limits import near, real, whole
from crepe_dist.supervising.fleet import REMOTE
from crepe_dist.supervising.supervisor import Options, Supervisor

EXAMPLES = """\
  python -m crepe_dist.supervise -np 4 --data data/reviews            four processes on this machine
  python -m crepe_dist.supervise -H node1:4,node2:4 --interface eth0 --config configs/smoke.yaml
  python -m crepe_dist.supervise -np 8 -H node1:4,node2:4 --interface eth0 --min-np 4

All other flags are passed to crepe_dist.train. After a failure, the workers restart from the newest checkpoint. On
SIGTERM or Ctrl-C they save and stop; run the same command again to resume.

exit codes: 0 done; 1 error in flags, data or installation; 75 stopped and saved; 130 interrupted; else that of the
failed worker
"""
MAX_PROCESSES = 1 << 16


def parser() -> arguments.Parser:
    result = arguments.parser("supervise", "Train with several processes, and restart them after a failure.", EXAMPLES)
    result.add_argument(
        "-np",
        "--processes",
        type=whole(1, MAX_PROCESSES),
        metavar="N",
        help="number of processes; default: the slots of all hosts; without -H: 1",
    )
    result.add_argument(
        "-H", "--hosts", metavar="HOST:SLOTS,…", help="hosts in the order of ranks; default: this machine with N slots"
    )
    result.add_argument(
        "--min-np",
        type=whole(1, MAX_PROCESSES),
        default=1,
        metavar="N",
        help="fewest processes to train with; else wait for hosts; default: 1",
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
    result.add_argument(
        "--interface", metavar="NAME", help="network interface between the hosts; default on a single machine: lo"
    )
    result.add_argument(
        "--rsh",
        default=shlex.join(REMOTE),
        metavar="COMMAND",
        help="command that reaches another host; default: %(default)s",
    )
    return result


def options(args: Sequence[str]) -> tuple[Options, list[str]]:
    """Parse the command line; return the supervisor's options and the flags of train."""
    values, rest = parser().parse_known_args(args)
    hosts = tuple(parse_hosts(values.hosts)) if values.hosts else (Host("localhost", values.processes or 1),)
    slots = sum(host.slots for host in hosts)
    processes = values.processes or slots
    if processes > slots:
        raise UserError(f"{processes} processes, but the hosts have {slots} slots", remedy="lower -np, or extend -H")
    if values.min_np > processes:
        raise UserError(f"--min-np {values.min_np} is more than the {processes} processes", remedy="lower it")
    remote = next((host.name for host in hosts if not host.local), None)
    if remote and not values.interface:
        raise UserError(
            f"{remote} is another host, and no --interface is given",
            "the processes listen on one network only",
            "give the interface that all hosts share, for instance --interface eth0 (`ip -brief address` lists them)",
        )
    try:
        rsh = tuple(shlex.split(values.rsh))
    except ValueError as error:
        raise UserError(f"--rsh {values.rsh}: {error}", remedy="quote it as for a shell") from error
    if not rsh:
        raise UserError("--rsh is empty", remedy="give a command, for instance --rsh ssh")
    interface = values.interface or LOOPBACK
    chosen = Options(
        processes=processes,
        hosts=hosts,
        min_processes=values.min_np,
        max_restarts=values.max_restarts,
        grace=values.grace,
        interface=interface,
        address=interface_address(interface),
        remote=rsh,
    )
    return chosen, rest


def run(chosen: Options, worker: Sequence[str]) -> int:
    """Supervise workers of the given command line; return the exit code."""
    supervisor = Supervisor(worker, chosen)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda received, _: supervisor.signal(received))
    return supervisor.run()


def main() -> None:
    chosen, rest = options(sys.argv[1:])
    _check(rest)
    sys.exit(run(chosen, [sys.executable, "-m", "crepe_dist.train", *rest]))


def _check(rest: Sequence[str]) -> None:
    """Check train's flags before any process starts.

    Raises:
        UserError: invalid flags; the remedy also suggests similar flags of the supervisor.
    """
    flags = [flag for action in parser()._actions for flag in action.option_strings]
    try:
        parse(rest)
    except UserError as error:
        similar = [near(argument.partition("=")[0], flags) for argument in rest if argument in error.what]
        error.remedy = next(filter(None, similar), error.remedy)
        raise


if __name__ == "__main__":
    command.run(main)
