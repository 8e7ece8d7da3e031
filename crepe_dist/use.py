"""Command that chooses the model of commands that are given none: ``python -m crepe_dist.use RUN``."""

from __future__ import annotations

from crepe_dist import command
from crepe_dist.errors import visible
from crepe_dist.records import write_sealed
from crepe_dist.runs import checkpoint
from crepe_dist.settings import flags as arguments

EXAMPLES = """  python -m crepe_dist.use reviews                        the only run whose name starts like this
  python -m crepe_dist.use runs/reviews-1f2e3d4c5b
  python -m crepe_dist.use hf://owner/name
"""


def parser() -> arguments.Parser:
    flags = arguments.parser(
        "use",
        "Choose the model of predict, evaluate, serve and export in this folder, until another one is chosen. Without "
        "a choice, it is the only run in runs/, and with several they ask for a name.",
        EXAMPLES,
    )
    flags.add_argument("model", metavar="RUN", help="run folder, .params file, exported folder or its URL")
    return flags


def main() -> None:
    name = parser().parse_args().model
    path = checkpoint.find(name)
    checkpoint.RUNS.mkdir(exist_ok=True)
    chosen = name if "://" in name else str(checkpoint.named(name))
    write_sealed(checkpoint.IN_USE, checkpoint.FORMAT, {"model": chosen})
    print(f"predict, evaluate, serve and export now use {visible(str(path))}")


if __name__ == "__main__":
    command.run(main)
