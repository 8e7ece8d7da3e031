"""Command that makes a trained model small: ``python -m crepe_dist.compress RUN --size 2MB --out DIR``."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from crepe_dist import command
from crepe_dist.distributed.launch import detect, limit_threads
from crepe_dist.errors import visible
from crepe_dist.settings import arguments
from crepe_dist.wording import counted, measure, percent, size

EXAMPLES = """  python -m crepe_dist.compress runs/reviews-1f2e3d4c5b --size 2MB --out small
  python -m crepe_dist.compress runs/reviews-1f2e3d4c5b --size 500kB --out small --data data/reviews
"""
SIZE = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,9})?) ?(kB|KB|MB|GB)")
UNITS = {"kB": 10**3, "KB": 10**3, "MB": 10**6, "GB": 10**9}


def bytes_of(text: str) -> int:
    """Parse a size such as 500kB or 1.5MB."""
    match = SIZE.fullmatch(text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is not a size such as 500kB or 1.5MB")
    return int(float(match[1]) * UNITS[match[2]])


def parser() -> arguments.Parser:
    flags = arguments.parser(
        "compress",
        "Make a trained model small. The rows of its tables that matter least in the training split are left out, and "
        "several numbers share a byte. The folder opens like a run: in predict, evaluate, serve and export.",
        EXAMPLES,
    )
    arguments.add_checkpoint(flags)
    flags.add_argument(
        "--size", type=bytes_of, required=True, metavar="SIZE", help="largest size, such as 2MB or 500kB"
    )
    arguments.add_model_folder(flags)
    flags.add_argument(
        "--data", type=Path, metavar="DIR", help="prepared folder with the training split; default: the run's"
    )
    arguments.add_foreign(flags)
    return flags


def main() -> None:
    given = parser().parse_args()
    arguments.check_folder(given.out)
    limit_threads(detect())
    from crepe_dist.exporting.compressor import compress_to
    from crepe_dist.predicting.predictor import load
    from crepe_dist.runs import checkpoint

    path = checkpoint.announce(checkpoint.find(given.checkpoint))
    predictor = load(path, **arguments.foreign(given), device="cpu")
    files, made, accuracies = compress_to(predictor, path, given.size, given.out, given.data)
    for file in files:
        print(f"{visible(str(file))} ({size(file.stat().st_size)})")
    for name, (kept, rows) in made.rows.items():
        print(f"{name} keeps {kept:,} of {rows:,} rows")
    print(f"{counted(made.numbers, 'number')} of a table in a byte")
    if accuracies is not None:
        texts, before, after = accuracies
        name = measure(predictor.thresholds is not None)
        print(f"{name} on {counted(texts, 'test text')}: {percent(before)} before, {percent(after)} now")


if __name__ == "__main__":
    command.run(main)
