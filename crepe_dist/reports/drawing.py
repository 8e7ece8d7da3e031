"""Figures as SVG inside a page, or as files of their own, all in one look."""

from __future__ import annotations

import hashlib
import html
import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from crepe_dist import wording
from crepe_dist.reports.colours import GREY

WIDTH = 5.4  # inches
LETTER = 8.5  # points
PIXELS = 110  # an inch, where a figure becomes a picture
_LOOK = {
    "font.family": "sans-serif",
    "font.size": LETTER,
    "axes.edgecolor": GREY,
    "axes.labelsize": LETTER,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "grid.color": GREY,
    "grid.alpha": 0.25,
    "hatch.linewidth": 0.6,
    "legend.frameon": False,
    "savefig.facecolor": "none",
    # Texts stay texts: they can be found and copied, and the reader's fonts know more scripts than matplotlib's. The
    # page's style sheet gives them font and colour.
    "svg.fonttype": "none",
    "svg.hashsalt": "crepe_dist",
    # A class called "$x$" is no formula.
    "text.parse_math": False,
    "text.usetex": False,
    "xtick.color": GREY,
    "ytick.color": GREY,
}


@contextmanager
def look() -> Iterator[None]:
    """Figures made inside look like those of the other reports, whatever the settings of the person who runs it."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_LOOK)
        yield


def blank(
    height: float, *, left: float, right: float = 0.15, bottom: float = 0.45, top: float = 0.1
) -> tuple[Figure, Axes]:
    """A figure with one pair of axes; all in inches. Inside ``look()`` only.

    The margins are given, not measured, because the widths of texts are the reader's browser's to decide.
    """
    figure = Figure(figsize=(WIDTH, height))
    inside = (left / WIDTH, bottom / height, (WIDTH - left - right) / WIDTH, (height - bottom - top) / height)
    return figure, figure.add_axes(inside)


def margin(labels: list[str]) -> float:
    """Inches to the left of an axis that these labels need."""
    widest = max(map(wording.cells, labels), default=0)
    return 0.15 + widest * 0.6 * LETTER / 72


def svg(figure: Figure, description: str = "") -> str:
    """``<svg>…</svg>`` to stand in a page: the same for the same figure, with ids that clash with no other's."""
    stream = io.StringIO()
    nothing = {"Creator": None, "Date": None, "Format": None, "Type": None}
    with look(), warnings.catch_warnings():
        # The browser draws the letters, with fonts of its own.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure.savefig(stream, format="svg", metadata=nothing)
    markup = stream.getvalue()
    markup = markup[markup.index("<svg") :].rstrip()
    prefix = "f" + hashlib.sha256((description + markup).encode("utf-8")).hexdigest()[:10]
    told = f'role="img" aria-label="{html.escape(description)}"' if description else 'aria-hidden="true"'
    # Only inside tags; "<" and ">" in texts and attributes are escaped.
    markup = re.sub("<[^>]*>", lambda tag: _fit_in(tag.group(), prefix), markup)
    view = re.search('viewBox="[^"]*"', markup)
    return f"<svg {view.group() if view else ''} {told}>{markup[markup.index('>') + 1 :]}"


def standalone(figure: Figure) -> str:
    """The figure on white as an SVG file of its own: no page gives its letters a colour."""
    stream = io.StringIO()
    with look():
        figure.savefig(stream, format="svg", facecolor="white", metadata={"Creator": None, "Date": None})
    return stream.getvalue()


def png(figure: Figure) -> tuple[bytes, int, int]:
    """The figure on white as a PNG file, its width and its height in pixels."""
    stream = io.BytesIO()
    with look(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure.savefig(stream, format="png", dpi=PIXELS, facecolor="white", metadata={"Software": None})
    width, height = (round(inches * PIXELS) for inches in figure.get_size_inches())
    return stream.getvalue(), width, height


def _fit_in(tag: str, prefix: str) -> str:
    """A tag with ids of its own, and in the page's font."""
    tag = re.sub(r'( id="|href="#|url\(#)', rf"\1{prefix}-", tag)
    return re.sub(r'font-family: [^;"]*; ', "", tag)
