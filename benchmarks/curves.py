"""Pictures of the benchmarks: lines with points, one colour per line."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

from crepe_dist.reports import drawing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = (drawing.BLUE, drawing.ORANGE, drawing.GREEN, drawing.RED, drawing.PINK, drawing.SKY)
LINE_STYLES = ("-", "--", ":", "-.")
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
        _, axes = drawing.blank(2.7 + legend, left=0.8, top=legend)
        axes.set_ylabel("accuracy")
        return _finished([axes], [curves], label, scale, columns)


def panels(panels: Mapping[str, Sequence[Curve]], label: str, scale: Callable[[Axes], object]) -> str:
    """Draw accuracies as an SVG file with two panels side by side, and as many below as needed.

    Args:
        panels: lines by the title of the panel. Lines with the same name look alike, and share the legend.
        label, scale: as in ``picture``.
    """
    from matplotlib.figure import Figure

    with drawing.style():
        left, bottom, top, between, axes_height = 0.45, 0.42, 0.7, 0.42, 1.4  # inches
        rows = -(-len(panels) // 2)
        height = top + rows * axes_height + (rows - 1) * between + bottom
        figure = Figure(figsize=(drawing.WIDTH, height))
        width, drawn = drawing.WIDTH / 2, []
        for number, title in enumerate(panels):
            row, column = divmod(number, 2)
            y = height - top - row * (axes_height + between) - axes_height
            box = ((column * width + left) / drawing.WIDTH, y / height)
            axes = figure.add_axes((*box, (width - left - 0.15) / drawing.WIDTH, axes_height / height))
            axes.set_title(title, loc="left", fontsize=drawing.FONT_SIZE, pad=3)
            axes.set_axisbelow(True)
            axes.tick_params(labelsize=7)
            drawn.append(axes)
        return _finished(drawn, list(panels.values()), label, scale, columns=3)


def _finished(
    panels: Sequence[Axes], curves: Sequence[Sequence[Curve]], label: str, scale: Callable[[Axes], object], columns: int
) -> str:
    """Draw curves into the panels of a figure, and a legend above the first."""
    names = list(dict.fromkeys(name for lines in curves for name, _, _ in lines))
    looks = dict(zip(names, itertools.product(LINE_STYLES, COLOURS)))
    legend: dict[str, Any] = {}
    for axes, lines in zip(panels, curves):
        for name, x, accuracies in lines:
            style, colour = looks[name]
            (legend[name],) = axes.plot(x, accuracies, color=colour, linestyle=style, marker="o", markersize=3)
        axes.yaxis.set_major_formatter(lambda share, _: f"{100 * share:g} %")
        scale(axes)
        axes.grid(axis="y")
    for axes in panels[-2:]:
        axes.set_xlabel(label)
    above = 0 if len(panels) == 1 else 0.16  # of the height of the axes: titles
    panels[0].legend(
        [legend[name] for name in names], names, loc="lower left", bbox_to_anchor=(0, 1 + above), ncols=columns
    )
    return drawing.standalone(cast("Figure", panels[0].figure))


def logarithmic(axes: Axes) -> None:
    """Make the x axis logarithmic, with marks at 1, 3, 10, 30 and so on."""
    from matplotlib.ticker import LogLocator, NullLocator

    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.10g}")
