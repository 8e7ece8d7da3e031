"""Common style of the figures, and their output as inline SVG, SVG files and PNG files.

matplotlib takes 0.5 s to import. The functions import it, so that a training run that draws nothing does not wait.
"""

from __future__ import annotations

import hashlib
import html
import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from crepe_dist import wording
from crepe_dist.reports.colours import GREY

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle
    from matplotlib.ticker import MaxNLocator

WIDTH = 5.4  # inches
FONT_SIZE = 8.5  # points
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


def svg(figure: Figure, description: str = "") -> str:
    """Return an ``<svg>`` element for a page: deterministic, with ids that are unique to the figure.

    Args:
        description: text for screen readers; without one they skip the figure.
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
    return f"<svg {view.group() if view else ''} {role}>{markup[markup.index('>') + 1 :]}"


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
    """Prefix the ids in a tag, and remove its font so that the page's font applies."""
    tag = re.sub(r'( id="|href="#|url\(#)', rf"\1{prefix}-", tag)
    return re.sub(r'font-family: [^;"]*; ', "", tag)
