"""Command that writes the report of a run again: ``python -m crepe_dist.report RUN``."""

from __future__ import annotations

from pathlib import Path

from crepe_dist import command, extras
from crepe_dist.data.dataset import Dataset
from crepe_dist.errors import UserError, visible
from crepe_dist.settings import flags as arguments

EXAMPLES = """  python -m crepe_dist.report runs/reviews-1f2e3d4c5b
  python -m crepe_dist.report runs/reviews-1f2e3d4c5b --data /elsewhere/reviews
"""


def parser() -> arguments.Parser:
    flags = arguments.parser(
        "report", "Write report.html and model_card.md into a run's folder, as training does at its end.", EXAMPLES
    )
    flags.add_argument("run", type=Path, metavar="RUN", help="folder of the run")
    flags.add_argument("--data", type=Path, metavar="DIR", help="folder of the data set, if it has moved")
    return flags


def main() -> None:
    args = parser().parse_args()
    extras.require("reports", "a report")

    # Imported here for --help: matplotlib and MXNet take 2 s.
    from crepe_dist.reports.run_page import CARD, REPORT, write_report
    from crepe_dist.runs.run_record import open_run

    record = open_run(args.run)
    data: Dataset | UserError
    try:
        data = record.dataset(args.data)
    except UserError as error:
        if args.data is not None:
            raise
        data = error
    for _ in write_report(record, data):
        pass
    for name in (REPORT, CARD):
        print(visible(str(args.run / name)))
    if isinstance(data, UserError):
        print(f"without texts: {visible(data.what)}")


if __name__ == "__main__":
    command.run(main)
