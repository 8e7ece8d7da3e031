#!/usr/bin/env python3
"""Draw docs/images out of what the commands really print.

uv run tools/pictures.py RUN          a run on the sample
"""

from __future__ import annotations

import io
import re
import sys
from pathlib import Path

from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console
from rich.terminal_theme import DIMMED_MONOKAI

import crepe_dist
from crepe_dist.errors import visible
from crepe_dist.reports.explanation import show

FOLDER = Path(__file__).resolve().parent.parent / "docs" / "images"
TEXTS = (
    "what a wonderfull litle film, and teh acting is superb",
    "lol cant beleive its monday agian, so tired @work :(",
    "The batery died after two weeks and the charger dosen't fit. Do not buy.",
)
# Rich's own frame fetches a font from elsewhere; a reader's monospaced one will do.
FRAME = re.sub(r"@font-face \{\{.*?\}\}\s*", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL)


def main() -> None:
    predictor = crepe_dist.load(sys.argv[1])
    console = Console(record=True, width=90, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    for text in TEXTS:
        explanation = predictor.explain(text)
        ranking = explanation.prediction.ranking
        console.print("   ".join(f"{visible(label)} {share:.1%}" for label, share in ranking), highlight=False)
        show(explanation, console)
        console.print()
    svg = console.export_svg(title="python -m crepe_dist.predict --explain", theme=DIMMED_MONOKAI, code_format=FRAME)
    FOLDER.mkdir(exist_ok=True)
    (FOLDER / "explain.svg").write_text(svg, encoding="utf-8")


if __name__ == "__main__":
    main()
