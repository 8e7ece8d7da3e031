"""Measures speed, side by side with other ways to do the same: `python -m crepe_dist.bench`."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from crepe_dist import arguments, command
from crepe_dist.cluster.launch import detect, limit_threads

EXAMPLES = """  python -m crepe_dist.bench --quick
  python -m crepe_dist.bench --json speed.json
"""


def main() -> None:
    flags = arguments.parser(
        "bench",
        "Measure encoding, loading, training and prediction on this machine, in turns with the original notebook's "
        "way and with the fastest matrix product. Medians; nothing is written but --json.",
        EXAMPLES,
    )
    flags.add_argument("--quick", action="store_true", help="three rounds of short measurements instead of five long")
    flags.add_argument("--tiny", action="store_true", help="sizes that show that it runs, and nothing else")
    flags.add_argument("--json", type=Path, metavar="FILE", help="write the figures to a file, too")
    given = flags.parse_args()

    limit_threads(detect())
    # Imported here: --help and a mistake need no MXNet, and it reads the number of threads when it is imported.
    from crepe_dist.measuring.suite import TINY, Sizes, run

    sizes = TINY if given.tiny else Sizes(rounds=3, seconds=2.0) if given.quick else Sizes()
    with tempfile.TemporaryDirectory() as folder:
        figures = run(sizes, Path(folder), say=lambda text: print(text, file=sys.stderr, flush=True))
    _show(figures)
    if given.json is not None:
        given.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


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
