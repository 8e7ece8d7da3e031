"""Measures speed, side by side with other ways to do the same: `python -m crepe_dist.bench`."""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from crepe_dist import arguments, command
from crepe_dist.cluster.launch import detect, limit_threads
from crepe_dist.errors import UserError
from crepe_dist.measuring import peers_environment

EXAMPLES = """  python -m crepe_dist.bench --quick
  python -m crepe_dist.bench --json speed.json
"""


def main() -> None:
    flags = arguments.parser(
        "bench",
        "Measure encoding, loading, training and prediction on this machine, in turns with the original notebook's "
        "way, the fastest matrix product, PyTorch and ONNX Runtime. Medians; nothing is written but --json and, once, "
        "an environment with the latter two in the cache.",
        EXAMPLES,
    )
    flags.add_argument("--quick", action="store_true", help="three rounds of short measurements instead of five long")
    flags.add_argument("--tiny", action="store_true", help="sizes that show that it runs, and nothing else")
    flags.add_argument("--json", type=Path, metavar="FILE", help="write the figures to a file, too")
    others = flags.add_mutually_exclusive_group()
    others.add_argument("--peers", metavar="PYTHON", help="an interpreter that has PyTorch, ONNX and ONNX Runtime")
    others.add_argument("--no-peers", action="store_true", help="do not compare with PyTorch and ONNX Runtime")
    given = flags.parse_args()
    python = None if given.no_peers else _peers(given.peers)

    limit_threads(detect())
    # Imported here: --help and a mistake need no MXNet, and it reads the number of threads when it is imported.
    from crepe_dist.measuring.suite import TINY, Sizes, run

    sizes = TINY if given.tiny else Sizes(rounds=3, seconds=2.0) if given.quick else Sizes()
    with tempfile.TemporaryDirectory() as folder:
        figures = run(sizes, Path(folder), _say, python)
    _show(figures)
    if given.json is not None:
        given.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _peers(given: str | None) -> str | None:
    """An interpreter for what is compared with; None, with a word why, if there can be none."""
    if given is not None:
        if (found := shutil.which(given)) is None:
            raise UserError(f"--peers: {given} is not a program", remedy="give the path of a Python, or leave it out")
        return found
    try:
        return peers_environment.interpreter(_say)
    except UserError as error:
        _say(f"{error.what}: {error.why}")
        return None


def _show(figures: dict[str, Any]) -> None:
    console = Console()
    console.print(", ".join(f"{name} {value}" for name, value in figures["machine"].items()), soft_wrap=True)
    for title, part, form in (("a second", "rates", ",.0f"), ("ours / theirs, more is better", "ratios", ".2f")):
        table = Table("", title, box=None, pad_edge=False)
        table.columns[1].justify = "right"
        for name, value in figures[part].items():
            table.add_row(name, format(value, form))
        console.print(table)


if __name__ == "__main__":
    command.run(main)
