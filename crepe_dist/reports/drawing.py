"""Colours and style of figures, and conversion of figures to inline SVG.

Importing matplotlib takes 0.5 s. The functions import it, so that runs without figures do not wait for the import.
"""

import hashlib
import html
import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from crepe_dist.formatting import number

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

# Okabe and Ito's palette for colour-blind readers, in a variant for light pages and a variant for dark pages. Each
# variant has a contrast of at least 3:1 with the page and with cards (WCAG 2.2, 1.4.11). Figures are drawn in the light
# variant. ``svg`` replaces these colours with variables, for which the style sheet of the page sets the variant.
PALETTE = {
    "blue": ("#006aa6", "#56b4e9"),
    "orange": ("#b87800", "#e69f00"),
    "green": ("#00875f", "#2cc295"),
    "red": ("#c94f00", "#f08a3c"),
    "sky": ("#2f93cf", "#9ad0f5"),
    "grey": ("#767c86", "#8d949e"),
}
BLUE, ORANGE, GREEN, RED, SKY, GREY = (light for light, _ in PALETTE.values())
SPLIT_COLOURS = {"validation": "orange", "test": "green"}
# Colours of evidence for and against a class. Pages use them as translucent backgrounds of text.
FOR, AGAINST = "#0072b2", "#d55e00"
WIDTH = 5.0  # Width of a figure, in inches.
FONT_SIZE = 9.0  # Font size, in points.
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
    "legend.frameon": False,
    "savefig.facecolor": "none",
    # Keep text as text: it can be searched and copied, and browsers' fonts cover more scripts than matplotlib's.
    "svg.fonttype": "none",
    "svg.hashsalt": "crepe_dist",
    # Class names such as "$x$" must not be rendered as formulas.
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


def blank(height: float, *, left: float, right: float, bottom: float, top: float) -> tuple["Figure", "Axes"]:
    """Create a figure with one pair of axes. Call this function in a ``with style()`` block.

    The margins are fixed (in inches), because the width of a text depends on the fonts of the reader's browser.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height))
    inside = (left / WIDTH, bottom / height, (WIDTH - left - right) / WIDTH, (height - bottom - top) / height)
    axes = figure.add_axes(inside)
    axes.set_axisbelow(True)
    return figure, axes


def locator(bins: int, *, integer: bool = True) -> "MaxNLocator":
    """Create a tick locator with at most ``bins`` intervals on an axis."""
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(bins, integer=integer, steps=[1, 2, 5, 10])


def label_with_percents(*axes: "Axis") -> None:
    """Label the ticks of axes in percent. The values of the axes are fractions."""
    for axis in axes:
        axis.set_major_formatter(lambda value, _: f"{100 * value:.3g} %")


def label_with_counts(*axes: "Axis") -> None:
    """Label the ticks of axes with thousands separators. The values of the axes are counts."""
    for axis in axes:
        axis.set_major_formatter(lambda value, _: number(value))


def svg(figure: "Figure", description: str) -> str:
    """Return an ``<svg>`` element for a page. The output is deterministic, and its ids are unique to the figure.

    Args:
        description: Text for screen readers.
    """
    stream = io.StringIO()
    with style(), warnings.catch_warnings():
        # Glyphs that matplotlib's font lacks do not matter, because the browser draws the text with its own fonts.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure.savefig(stream, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    markup = stream.getvalue()
    markup = markup[markup.index("<svg") :].rstrip()
    prefix = "f" + hashlib.sha256((description + markup).encode("utf-8")).hexdigest()[:10]
    role = f'role="img" aria-label="{html.escape(description)}"'
    # matplotlib escapes "<" and ">" in texts and attributes, so this only matches tags.
    markup = re.sub("<[^>]*>", lambda tag: _adapted(tag.group(), prefix), markup)
    view = re.search('viewBox="[^"]*"', markup)
    markup = markup[markup.index(">") + 1 :].removesuffix("</svg>")
    return f"<svg {view.group() if view else ''} {role}>{markup}</svg>"


def _adapted(tag: str, prefix: str) -> str:
    """Prefix the ids in a tag, replace the palette's colours with variables of the style sheet, and remove the font."""
    tag = re.sub(r'( id="|href="#|url\(#)', rf"\1{prefix}-", tag)
    tag = re.sub("#[0-9a-f]{6}", lambda colour: _VARIABLES.get(colour.group(), colour.group()), tag)
    return re.sub(r'font-family: [^;"]*; ', "", tag)
