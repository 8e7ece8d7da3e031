"""Command that compares runs: ``python -m crepe_dist.compare RUN RUN…``."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from crepe_dist import command
from crepe_dist.errors import UserError
from crepe_dist.reports import comparison
from crepe_dist.runs.run_record import open_run
from crepe_dist.settings import arguments

EXAMPLES = """  python -m crepe_dist.compare runs/reviews-1f2e3d4c5b runs/reviews-6a7b8c9d0e
  python -m crepe_dist.compare runs/reviews-*
"""


def parser() -> arguments.Parser:
    flags = arguments.parser(
        "compare",
        "Compare the scores and settings of runs, and test whether differences are significant. The first run is the "
        "baseline.",
        EXAMPLES,
    )
    flags.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="folder of a run")
    return flags


def main() -> None:
    args = parser().parse_args()
    if len(args.runs) < 2:
        raise UserError("one run cannot be compared", remedy="name at least two runs")
    comparison.show([open_run(path) for path in args.runs], Console(highlight=False))


if __name__ == "__main__":
    command.run(main)
