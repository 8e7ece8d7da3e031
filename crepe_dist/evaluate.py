"""Command that scores a model, in one or several processes: ``python -m crepe_dist.evaluate RUN FILE``."""

from __future__ import annotations

from pathlib import Path

from crepe_dist import command
from crepe_dist.data.dataset import SPLITS
from crepe_dist.distributed.join import join
from crepe_dist.errors import UserError
from crepe_dist.settings import flags as arguments
from crepe_dist.settings.fields import real, shortened, whole
from crepe_dist.settings.options import LARGEST_BATCH

RATE = real(0, 1)  # of typing errors
EXAMPLES = """  python -m crepe_dist.evaluate
  python -m crepe_dist.evaluate runs/reviews-1f2e3d4c5b march.csv --mistakes mistakes.csv
  python -m crepe_dist.evaluate --data data/reviews --typos 0,0.02,0.05,0.1
  horovodrun -np 2 python -m crepe_dist.evaluate runs/reviews-1f2e3d4c5b --data data/reviews --json scores.json
  python -m crepe_dist.evaluate crepe_gluon_epoch6.params --data data/amazon7 --mode notebook --classes classes.txt
"""


def parser() -> arguments.Parser:
    from crepe_dist.preparing.flags import add_columns  # imports all of preparing

    flags = arguments.parser(
        "evaluate",
        "Compute the accuracy, macro F1 and loss of a model, precision, recall and F1 by class, and the confusion "
        "matrix, and show the worst mistakes. FILE is read as the model's data were. Rows of it, or of other data than "
        "the run's, that the run has learnt from are not scored.",
        EXAMPLES,
    )
    arguments.add_checkpoint(flags)
    arguments.add_device(flags)
    flags.add_argument(
        "file",
        nargs="?",
        metavar="FILE",
        help="labelled texts to score: a file (CSV, TSV, JSON Lines, Parquet, plain or .gz), a folder, a URL or -",
    )
    flags.add_argument("--data", metavar="DIR", help="prepared folder; default: the data of the run, else the sample")
    flags.add_argument("--split", choices=SPLITS, default="test", help="split to score; default: test")
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
    add_columns(flags.add_argument_group("columns of FILE"), *["that of the model's data"] * 2)
    arguments.add_foreign(flags)
    return flags


def main() -> None:
    flags = parser()
    args, rest = flags.parse_known_args()
    if rest and args.file is None and (rest[0] == "-" or not rest[0].startswith("-")):
        args.file = rest.pop(0)  # after a flag; argparse then gives it up
    if rest:
        raise flags.unknown(rest[0])
    with join() as world:
        # Not at the top: pandas and matplotlib take a second, which --help need not wait for.
        from crepe_dist.evaluating.rows import is_labelled_file
        from crepe_dist.evaluating.scoring import score

        if args.checkpoint and not args.file and is_labelled_file(args.checkpoint):
            args.checkpoint, args.file = None, args.checkpoint
        if args.file and args.data:
            raise UserError("FILE and --data exclude each other", "each names the rows to score", "give only one")
        arguments.check_output(args.json, "--json", args.file)
        arguments.check_page(args.html, args.file)
        arguments.check_output(args.mistakes, "--mistakes", args.file)
        score(args, world)


def _rates(text: str) -> list[float]:
    try:
        return [float(RATE(part.strip())) for part in text.split(",")]
    except ValueError:
        raise UserError(
            f"--typos is {shortened(text)}", remedy=f"give shares like 0,0.02,0.05,0.1, each {RATE}"
        ) from None


if __name__ == "__main__":
    command.run(main)
