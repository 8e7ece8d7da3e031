"""Pictures of the benchmarks: lines with points, one colour per line."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from crepe_dist.reports import drawing
from crepe_dist.reports.run_figures import LINE_STYLES, RUN_COLOURS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Curve = tuple[str, Sequence[float], Sequence[float]]  # name, x, y


def picture(curves: Sequence[Curve], label: str, scale: Callable[[Axes], object], columns: int = 1) -> str:
    """Draw accuracies, or what ``scale`` labels, as an SVG file.

    Args:
        curves: lines in the order of the legend, which is above the axes.
        label: label of the x axis.
        scale: function that sets up the x axis, and the y axis if it does not show accuracies.
        columns: columns of the legend.
    """
    with drawing.style():
        legend = 0.15 + 0.2 * -(-len(curves) // columns)
        figure, axes = drawing.blank(2.7 + legend, left=0.8, top=legend)
        for (name, x, accuracies), (style, colour) in zip(curves, itertools.product(LINE_STYLES, RUN_COLOURS)):
            axes.plot(x, accuracies, color=colour, linestyle=style, marker="o", markersize=3, label=name)
        axes.set(xlabel=label, ylabel="accuracy")
        axes.yaxis.set_major_formatter(lambda share, _: f"{100 * share:g} %")
        scale(axes)
        axes.grid(axis="y")
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=columns)
        return drawing.standalone(figure)


def logarithmic(axes: Axes) -> None:
    """Make the x axis logarithmic, with marks at 1, 3, 10, 30 and so on."""
    from matplotlib.ticker import LogLocator, NullLocator

    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.10g}")
