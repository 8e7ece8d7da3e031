#!/usr/bin/env python3
"""Draw the diagrams of docs/concepts.md as SVG files in docs/images.

uv run --no-sync tools/diagrams.py                The script needs Python's standard library only.
"""

from html import escape
from pathlib import Path

FOLDER = Path(__file__).resolve().parent.parent / "docs" / "images"
LINE_HEIGHT, TEXT_SIZE = 19, 13.5  # pixels
BOX_HEIGHTS = {2: 52, 3: 72}  # Height of a box in pixels, by its number of lines.
FONT = "ui-sans-serif, system-ui, 'Segoe UI', Helvetica, Arial, sans-serif"
# Fill and border of a box. The colours have enough contrast on the white background in print and on dark pages.
STYLES = {
    "data": ("#e8f1fb", "#3b75af"),
    "ngram": ("#e9f5ea", "#3c8a47"),
    "conv": ("#fdf0e1", "#b8741a"),
    "shared": ("#f1ecf9", "#7452a8"),
    "plain": ("#f6f6f6", "#777777"),
    "group": ("none", "#aaaaaa"),
}


class Diagram:
    """SVG picture made of boxes, arrows and lines of text; coordinates are pixels from the top left corner."""

    def __init__(self, name: str, title: str, width: int, height: int) -> None:
        self._name = name
        self._elements = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
            f'height="{height}" role="img" font-family="{FONT}" font-size="{TEXT_SIZE}">',
            f"<title>{escape(title)}</title>",
            '<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8" '
            'orient="auto-start-reverse"><path d="M0 0 L8 4 L0 8 Z" fill="#444"/></marker></defs>',
            f'<rect width="{width}" height="{height}" rx="8" fill="#ffffff"/>',
        ]

    def box(self, style: str, left: int, top: int, width: int, height: int, *lines: str) -> None:
        """Draw a box with centred lines of text; the first line is bold."""
        fill, border = STYLES[style]
        dashes = ' stroke-dasharray="5 4"' if style == "group" else ""
        self._elements.append(
            f'<rect x="{left}" y="{top}" width="{width}" height="{height}" rx="6" fill="{fill}" stroke="{border}" '
            f'stroke-width="1.4"{dashes}/>'
        )
        first = top + height / 2 - LINE_HEIGHT * (len(lines) - 1) / 2 + TEXT_SIZE * 0.35
        for number, line in enumerate(lines):
            self.text(left + width / 2, first + LINE_HEIGHT * number, line, bold=number == 0)

    def text(self, x: float, y: float, line: str, *, bold: bool = False, anchor: str = "middle") -> None:
        """Write a line of text; ``y`` is its baseline."""
        weight = ' font-weight="600"' if bold else ""
        self._elements.append(
            f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}" fill="#222"{weight}>{escape(line)}</text>'
        )

    def arrow(self, *points: tuple[int, int], both: bool = False) -> None:
        """Draw a line through the points, with an arrowhead at its end, or at both ends."""
        path = " ".join(f"{x},{y}" for x, y in points)
        start = ' marker-start="url(#head)"' if both else ""
        self._elements.append(
            f'<polyline points="{path}" fill="none" stroke="#444" stroke-width="1.5" marker-end="url(#head)"{start}/>'
        )

    def save(self) -> None:
        """Write the picture into the folder of images."""
        (FOLDER / f"{self._name}.svg").write_text("\n".join([*self._elements, "</svg>", ""]), encoding="utf-8")


def draw_network() -> None:
    diagram = Diagram("network", "The network: two branches whose logits are added", 760, 566)
    diagram.box("data", 230, 20, 300, 52, "text", "“the directer tells a moving story”")
    diagram.arrow((380, 72), (380, 100))
    diagram.box("data", 230, 100, 300, 52, "char ids", "one byte per character, uint8 [L]")
    diagram.arrow((300, 152), (300, 176), (190, 176), (190, 204))
    diagram.arrow((460, 152), (460, 176), (570, 176), (570, 204))

    for style, left, *boxes in (
        (
            "ngram", 20,
            ("n-gram branch", "hashes all n-grams of 1 to 6 characters,", "all words, and all pairs of words"),
            ("n-gram table", "has one row per hash bucket,", "and one weight per class in each row"),
            ("means of the rows", "are the logits of the n-gram branch"),
        ),
        (
            "conv", 400,
            ("convolutional branch", "hashes the n-grams that start at each position,",
             "and adds their rows of the embedding table"),
            ("residual block", "has two convolutions;", "then maximum and mean over the positions"),
            ("linear layer × branch weight", "are the logits of the convolutional branch"),
        ),
    ):  # fmt: skip
        for number, lines in enumerate(boxes):
            top = 204 + 96 * number
            if number:
                diagram.arrow((left + 170, top - 24), (left + 170, top))
            diagram.box(style, left, top, 340, BOX_HEIGHTS[len(lines)], *lines)

    diagram.arrow((190, 448), (190, 506), (240, 506))
    diagram.arrow((570, 448), (570, 506), (520, 506))
    diagram.box(
        "plain", 240, 466, 280, 80,
        "0.75 × sum of the logits", "÷ temperature, then softmax", "= probability of each class",
    )  # fmt: skip
    diagram.save()


def draw_step() -> None:
    diagram = Diagram("step", "One training step on two processes", 800, 664)
    diagram.box("data", 210, 20, 380, 52, "global batch of 64 documents", "the seed and the epoch determine its rows")
    for rank, left in enumerate((20, 420)):
        middle, half = left + 180, ("first half", "second half")[rank]
        start = (300, 500)[rank]
        diagram.box("group", left - 10, 100, 380, 550)
        diagram.text(left + 6, 122, f"rank {rank}", bold=True, anchor="start")
        diagram.arrow((start, 72), (start, 86), (middle, 86), (middle, 132))
        diagram.box("data", left, 132, 360, 52, "DataLoader", "yields this rank’s shard: 32 of the 64 documents")
        diagram.arrow((middle, 184), (middle, 208))
        diagram.box("plain", left, 208, 360, 52, "engine.forward_backward", "computes gradients in fixed point (int32)")
        diagram.arrow((middle, 260), (middle, 292))
        diagram.arrow((middle, 430), (middle, 462))
        diagram.box(
            "plain", left, 462, 360, 72, "optimizer.step: dense parameters",
            "The rank updates its own copy.", "All copies stay bit-identical.",
        )  # fmt: skip
        diagram.arrow((middle, 534), (middle, 558))
        diagram.box(
            "plain", left, 558, 360, 72, f"optimizer.step: {half} of the used table rows",
            "The rank adds the gradients of these rows", "from both processes, and updates the rows.",
        )  # fmt: skip
    diagram.box(
        "shared", 120, 292, 560, 138,
        "optimizer.all_reduce: dense gradients, in shared memory",
        "Rank 0 adds one half of the gradients of both ranks, rank 1 the other half.",
        "Integer sums do not depend on the order of the additions.",
        "The loss, the step number, the bounds of the sums,",
        "and requests to save or to stop travel with the gradients.",
    )  # fmt: skip
    diagram.save()


def draw_workflow() -> None:
    diagram = Diagram("workflow", "From files to predictions: prepare, train, predict", 760, 590)
    for top, style, *lines in (
        (20, "data", "your files", "CSV, Excel, JSON Lines, Parquet, fastText lines, or a folder per class"),
        (96, "ngram", "crepe prepare", "checks the rows, splits them, and encodes the characters"),
        (172, "data", "data set folder", "dataset.json, char ids and labels of each split, report.html"),
        (248, "ngram", "crepe train", "in one process or many; the same command resumes an interrupted run"),
        (324, "data", "run folder", "config.yaml, checkpoints/, state/ (until the end), result.json, report.html"),
    ):  # fmt: skip
        diagram.box(style, 60, top, 640, 52, *lines)
        diagram.arrow((380, top + 52), (380, top + 76))
    diagram.box("group", 20, 400, 720, 170)
    diagram.text(380, 426, "The selected checkpoint is the model.", bold=True)
    for number, (command, *does) in enumerate((
        ("crepe evaluate", "scores,", "worst mistakes"),
        ("crepe predict", "classes of new texts,", "explanations"),
        ("crepe serve", "HTTP service", "with a page"),
        ("crepe export", "ONNX, web page,", "small models"),
    )):  # fmt: skip
        diagram.box("ngram", 36 + 174 * number, 448, 164, 100, command, *does)
    diagram.save()


if __name__ == "__main__":
    draw_network()
    draw_step()
    draw_workflow()
