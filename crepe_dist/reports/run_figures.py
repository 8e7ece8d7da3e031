"""Training curves of a run: loss and accuracy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from crepe_dist.formatting import number
from crepe_dist.reports import drawing
from crepe_dist.runs.metrics import History

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SPLITS = {"validation": (drawing.ORANGE, "s"), "test": (drawing.GREEN, "o")}
FEWEST_SMOOTHED = 20  # points; fewer are shown as they are
SPAN = 15  # the moving average spans one fifteenth of the points to either side
LEAST_SPAN = 0.04  # of an accuracy axis, so that differences that are chance look small
NEARLY_ZERO = 0.25  # an accuracy axis that would start below this starts at 0


def curves(history: History, reported: int, measure: str) -> dict[str, str]:
    """Draw the curves of a run, by name; none if it has no steps or no epochs."""
    if not history.points or not history.epochs:
        return {}
    return {
        "loss": loss(history, reported),
        "accuracy": accuracy(history, reported, measure),
    }


def loss(history: History, reported: int | None = None) -> str:
    """Plot the train loss by step, smoothed over the raw values, and the other losses by epoch."""
    with drawing.style():
        figure, axes = _axes("loss", history)
        steps = [point.step for point in history.points]
        means = [point.mean for point in history.points]
        if history.width > 1:
            lows, highs = [point.low for point in history.points], [point.high for point in history.points]
            axes.fill_between(steps, lows, highs, color=drawing.SKY, alpha=0.25, linewidth=0)
        if len(means) >= FEWEST_SMOOTHED:
            axes.plot(steps, means, color=drawing.SKY, linewidth=0.9, alpha=0.5)
        axes.plot(steps, smoothed(means), color=drawing.BLUE, linewidth=1.6, label="train")
        _epochs(axes, history, "loss", reported)
        _marks(axes, history)
        axes.set_ylim(0, 1.06 * axes.get_ylim()[1])
        # The first steps are often far above the rest: clip them.
        ordered = sorted(means)
        most = 2 * ordered[int(0.9 * (len(ordered) - 1))]
        if means[0] > most:
            axes.set_ylim(top=most)
            axes.set_ylabel(f"loss (at first up to {ordered[-1]:.2f})")
        _legend(axes)
        return drawing.svg(figure, "Train loss by step, validation and test loss by epoch")


def smoothed(values: Sequence[float]) -> list[float]:
    """Return the moving average of values around each; few values as they are."""
    if len(values) < FEWEST_SMOOTHED:
        return list(values)
    window = np.hanning(2 * (len(values) // SPAN) + 3)
    counts = np.convolve(np.ones(len(values)), window, "same")
    return [float(mean) for mean in np.convolve(values, window, "same") / counts]


def accuracy(history: History, reported: int | None = None, measure: str = "accuracy") -> str:
    """Plot the validation and test accuracy by epoch."""
    with drawing.style():
        figure, axes = _axes(measure, history)
        _epochs(axes, history, "accuracy", reported)
        _marks(axes, history)
        low, high = axes.dataLim.intervaly
        start = 0.0 if low < NEARLY_ZERO else min(math.floor(50 * low) / 50, 1 - LEAST_SPAN)
        axes.set_ylim(start, min(1.005, max(high + 0.05 * (high - start), start + LEAST_SPAN)))
        axes.yaxis.set_major_locator(drawing.locator(4, integer=False))
        axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.3g} %")
        if start:
            axes.set_ylabel(f"{measure} (axis from {100 * start:.3g} %)")
        _legend(axes)
        return drawing.svg(figure, f"Validation and test {measure} by epoch")


def _axes(label: str, history: History) -> tuple[Figure, Axes]:
    """Make axes over steps, with room for a legend above."""
    top = 0.5 if history.resumes else 0.3
    figure, axes = drawing.blank(2.2 + top, left=0.75, right=0.1, top=top, bottom=0.45)
    axes.set_ylabel(label)
    axes.set_xlabel("steps", loc="right")
    axes.grid(axis="y")
    axes.set_xlim(0, 1.02 * history.points[-1].step)
    axes.xaxis.set_major_locator(drawing.locator(6))
    axes.xaxis.set_major_formatter(lambda value, _: number(value))
    return figure, axes


def _epochs(axes: Axes, history: History, score: str, reported: int | None) -> None:
    for split, (colour, marker) in SPLITS.items():
        points = [(each["step"], each[f"{split}_{score}"]) for each in history.epochs if f"{split}_{score}" in each]
        if points:
            label = f"{split} (chooses)" if split == "validation" else split
            axes.plot(*zip(*points), color=colour, marker=marker, markersize=3.5, linewidth=1.3, label=label)
    steps = [record["step"] for record in history.epochs if record["epoch"] == reported]
    if steps:
        axes.axvline(steps[-1], color=drawing.GREY, linestyle="--", linewidth=1, label="reported")


def _marks(axes: Axes, history: History) -> None:
    """Mark the steps at which the run resumed."""
    for index, step in enumerate(history.resumes):
        axes.axvline(step, color=drawing.GREY, linestyle=":", linewidth=1, label="resumed" if not index else None)


def _legend(axes: Axes) -> None:
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=4, borderpad=0, borderaxespad=0.4, handlelength=1.4,
                columnspacing=1.2)  # fmt: skip
