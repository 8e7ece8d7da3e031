"""Common style of the figures, and their output as inline SVG, SVG files and PNG files.

matplotlib takes 0.5 s to import. The functions import it, so that a training run that draws nothing does not wait.
"""

from __future__ import annotations

import hashlib
import html
import io
import re
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, cast

from crepe_dist import wording
from crepe_dist.reports.colours import GREY, PALETTE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle
    from matplotlib.ticker import MaxNLocator

WIDTH = 5.0  # inches
FONT_SIZE = 9.0  # points
DPI = 110  # of PNG files
_STYLE = {
    "font.family": "sans-serif",
    "font.size": FONT_SIZE,
    "axes.edgecolor": GREY,
    "axes.labelsize": FONT_SIZE,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "grid.color": GREY,
    "grid.alpha": 0.25,
    "hatch.linewidth": 0.6,
    "legend.frameon": False,
    "savefig.facecolor": "none",
    # Keep text as text: it can be searched and copied, and browsers' fonts cover more scripts than matplotlib's.
    "svg.fonttype": "none",
    "svg.hashsalt": "crepe_dist",
    # A class may be called "$x$".
    "text.parse_math": False,
    "text.usetex": False,
    "xtick.color": GREY,
    "ytick.color": GREY,
}

_VARIABLES = {light: f"var(--{name})" for name, (light, _) in PALETTE.items()}


@contextmanager
def style() -> Iterator[None]:
    """Apply the style of the reports to figures, regardless of the user's matplotlib settings."""
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        yield


def blank(
    height: float, *, left: float, right: float = 0.15, bottom: float = 0.45, top: float = 0.1
) -> tuple[Figure, Axes]:
    """Make a figure with one pair of axes; call it inside ``style()``.

    The margins, in inches, are fixed because only the reader's browser knows the widths of texts.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height))
    inside = (left / WIDTH, bottom / height, (WIDTH - left - right) / WIDTH, (height - bottom - top) / height)
    return figure, figure.add_axes(inside)


def locator(bins: int, *, integer: bool) -> MaxNLocator:
    """Make a locator that puts at most ``bins`` intervals on an axis."""
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(bins, integer=integer)


def square(column: int, row: int, colour: str, alpha: float) -> Rectangle:
    """Make the translucent background of a cell of a matrix."""
    from matplotlib.patches import Rectangle

    return Rectangle((column - 0.5, row - 0.5), 1, 1, facecolor=colour, alpha=alpha, edgecolor="none")


def margin(labels: list[str]) -> float:
    """Estimate the margin in inches that these labels need beside an axis."""
    widest = max(map(wording.cells, labels), default=0)
    return 0.15 + widest * 0.6 * FONT_SIZE / 72


def tooltips(axes: Axes, boxes: Iterable[tuple[float, float, float, float, str]]) -> str:
    """Make the markup of invisible rectangles that show a text when the pointer rests on them.

    Args:
        axes: finished axes.
        boxes: left, bottom, right and top in data coordinates, and the text.
    """
    found = []
    for left, bottom, right, top, text in boxes:
        (x, low), (end, high) = _place(axes, left, bottom), _place(axes, right, top)
        x, end, high, low = *sorted((x, end)), *sorted((low, high))
        found.append(
            f'<rect class="tip" x="{x:.1f}" y="{high:.1f}" width="{end - x:.1f}" height="{low - high:.1f}">'
            f"<title>{html.escape(text)}</title></rect>"
        )
    return "".join(found)


def readouts(axes: Axes, values: Sequence[tuple[float, str]]) -> str:
    """Make the markup that shows the values at the pointer's place below the axes, without a script.

    Args:
        axes: finished axes; the left half of the line of their label must be free.
        values: positions on the x axis, in order, and what to show there.
    """
    if not values:
        return ""
    figure = cast("Figure", axes.figure)
    places = [_place(axes, x, 0)[0] for x, _ in values]
    box = axes.get_position()
    left, right = box.x0 * WIDTH * 72, box.x1 * WIDTH * 72
    height = figure.get_figheight() * 72
    top, bottom = (1 - box.y1) * height, (1 - box.y0) * height
    ends = [left, *((a + b) / 2 for a, b in zip(places, places[1:])), right]
    return "".join(
        f'<g class="at"><rect x="{start:.1f}" y="{top:.1f}" width="{max(end - start, 0):.1f}" '
        f'height="{bottom - top:.1f}"/><path d="M {x:.1f} {top:.1f} V {bottom:.1f}"/>'
        f'<text x="{left:.1f}" y="{height - 4:.1f}" font-size="{FONT_SIZE}">{html.escape(text)}</text></g>'
        for x, start, end, (_, text) in zip(places, ends, ends[1:], values)
    )


def _place(axes: Axes, x: float, y: float) -> tuple[float, float]:
    """Convert data coordinates to those of the SVG: points from the top left corner."""
    figure = cast("Figure", axes.figure)
    across, up = axes.transData.transform((x, y)) * 72 / figure.dpi
    return float(across), float(figure.get_figheight() * 72 - up)


def svg(figure: Figure, description: str = "", overlay: str = "") -> str:
    """Return an ``<svg>`` element for a page: deterministic, with ids that are unique to the figure.

    Args:
        description: text for screen readers; without one they skip the figure.
        overlay: markup of ``tooltips`` or ``readouts``.
    """
    stream = io.StringIO()
    no_metadata = {"Creator": None, "Date": None, "Format": None, "Type": None}
    with style(), warnings.catch_warnings():
        # The browser draws the text with its own fonts.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure.savefig(stream, format="svg", metadata=no_metadata)
    markup = stream.getvalue()
    markup = markup[markup.index("<svg") :].rstrip()
    prefix = "f" + hashlib.sha256((description + markup).encode("utf-8")).hexdigest()[:10]
    role = f'role="img" aria-label="{html.escape(description)}"' if description else 'aria-hidden="true"'
    # matplotlib escapes "<" and ">" in texts and attributes, so this only matches tags.
    markup = re.sub("<[^>]*>", lambda tag: _adapted(tag.group(), prefix), markup)
    view = re.search('viewBox="[^"]*"', markup)
    markup = markup[markup.index(">") + 1 :].removesuffix("</svg>")
    return f"<svg {view.group() if view else ''} {role}>{markup}{overlay}</svg>"


def standalone(figure: Figure) -> str:
    """Return the figure as an SVG file with a white background."""
    stream = io.StringIO()
    with style():
        figure.savefig(stream, format="svg", facecolor="white", metadata={"Creator": None, "Date": None})
    return stream.getvalue()


def png(figure: Figure) -> tuple[bytes, int, int]:
    """Return the figure as a PNG file with a white background, and its width and height in pixels."""
    stream = io.BytesIO()
    with style(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure.savefig(stream, format="png", dpi=DPI, facecolor="white", metadata={"Software": None})
    width, height = (round(inches * DPI) for inches in figure.get_size_inches())
    return stream.getvalue(), width, height


def _adapted(tag: str, prefix: str) -> str:
    """Prefix the ids in a tag, and leave its font and the colours of the palette to the page's style sheet."""
    tag = re.sub(r'( id="|href="#|url\(#)', rf"\1{prefix}-", tag)
    tag = re.sub("#[0-9a-f]{6}", lambda found: _VARIABLES.get(found.group(), found.group()), tag)
    return re.sub(r'font-family: [^;"]*; ', "", tag)
