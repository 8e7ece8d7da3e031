"""Command that scores a checkpoint, in one or several processes: ``python -m crepe_dist.evaluate RUN --data DIR``."""

from __future__ import annotations

import argparse
from pathlib import Path

from crepe_dist import command
from crepe_dist.data.dataset import SPLITS
from crepe_dist.distributed.join import join
from crepe_dist.errors import UserError
from crepe_dist.settings import arguments
from crepe_dist.settings.data_options import LARGEST_BATCH
from crepe_dist.settings.limits import real, shortened, whole

RATE = real(0, 1)  # of typing errors
EXAMPLES = """  python -m crepe_dist.evaluate
  python -m crepe_dist.evaluate --data data/reviews --typos 0,0.02,0.05,0.1
  horovodrun -np 2 python -m crepe_dist.evaluate runs/reviews-1f2e3d4c5b --data data/reviews --json scores.json
  python -m crepe_dist.evaluate crepe_gluon_epoch6.params --data data/amazon7 --mode notebook --classes classes.txt
"""


def parser() -> arguments.Parser:
    flags = arguments.parser(
        "evaluate",
        "Compute the accuracy, macro F1 and loss of a checkpoint, precision, recall and F1 by class, and the confusion "
        "matrix, and show the worst mistakes.",
        EXAMPLES,
    )
    arguments.add_checkpoint(flags)
    arguments.add_device(flags)
    flags.add_argument("--data", metavar="DIR", help="prepared folder; default: the data of the run, else the sample")
    flags.add_argument("--part", choices=SPLITS, default="test", help="split to score; default: test")
    flags.add_argument(
        "--batch-size",
        type=whole(1, LARGEST_BATCH),
        default=512,
        metavar="B",
        help="documents per step, over all processes; default: 512",
    )
    flags.add_argument(
        "--typos",
        type=_rates,
        default=[],
        metavar="R,R,…",
        help="also score with typing errors in these shares of the characters, such as 0,0.02,0.05,0.1",
    )
    flags.add_argument("--json", type=Path, metavar="FILE", help="also write all numbers to FILE as JSON")
    flags.add_argument("--html", type=Path, metavar="FILE", help="also write a page with figures and mistakes to FILE")
    flags.add_argument(
        "--mistakes", type=Path, metavar="FILE", help="also write all mistakes to FILE as CSV, with file, line and id"
    )
    arguments.add_foreign(flags)
    return flags


def main() -> None:
    args = parser().parse_args()
    with join() as world:
        # Not at the top: pandas and matplotlib take a second, which --help need not wait for.
        from crepe_dist.evaluating.scoring import score

        arguments.check_output(args.json, "--json")
        arguments.check_page(args.html)
        arguments.check_output(args.mistakes, "--mistakes")
        score(args, world)


def _rates(text: str) -> list[float]:
    try:
        return [float(RATE(part.strip())) for part in text.split(",")]
    except argparse.ArgumentTypeError as error:
        raise UserError(
            f"--typos {shortened(text)}: one {error}", remedy=f"give shares like 0,0.02,0.05,0.1, each {RATE}"
        ) from error


if __name__ == "__main__":
    command.run(main)
