"""Training curves of a run: loss and accuracy."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from crepe_dist.reports import drawing
from crepe_dist.reports.drawing import Axes
from crepe_dist.runs.metrics import History
from crepe_dist.wording import number

SPLITS = {"validation": (drawing.ORANGE, 0.0), "test": (drawing.GREEN, 1.8)}  # rounding of the dots
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
    steps, means = [point.step for point in history.points], [point.means["loss"] for point in history.points]
    lows, highs = [point.low for point in history.points], [point.high for point in history.points]
    scored = [each[f"{split}_loss"] for split in SPLITS for each in history.epochs if f"{split}_loss" in each]
    # The first steps are often far above the rest, which the axis leaves out.
    ordered = sorted(means)
    most, usual = 1.1 * max(*highs, *scored, 0.01), 2 * ordered[int(0.9 * (len(ordered) - 1))]
    label = "loss"
    if means[0] > usual:
        most, label = usual, f"loss (at first up to {ordered[-1]:.2f})"
    axes = _axes(history, (0, most))
    axes.scale_y(((value, f"{value:.3g}") for value in drawing.round_values(0, most, 7)), label)
    if history.width > 1:
        around = [*zip(steps, lows), *zip(reversed(steps), reversed(highs))]
        axes.line(around, drawing.SKY, 0, opacity=0.25, fill=drawing.SKY)
    if len(means) >= FEWEST_SMOOTHED:
        axes.line(zip(steps, means), drawing.SKY, 0.9, opacity=0.5)
    axes.line(zip(steps, smoothed(means)), drawing.BLUE, 1.6)
    _epochs(axes, history, "loss", reported, most, [("train", drawing.BLUE, "none")])
    return drawing.svg("Train loss by step, validation and test loss by epoch", axes)


def smoothed(values: Sequence[float]) -> list[float]:
    """Return the moving average of values around each; few values as they are."""
    if len(values) < FEWEST_SMOOTHED:
        return list(values)
    window = np.hanning(2 * (len(values) // SPAN) + 3)
    counts = np.convolve(np.ones(len(values)), window, "same")
    return [float(mean) for mean in np.convolve(values, window, "same") / counts]


def accuracy(history: History, reported: int | None = None, measure: str = "accuracy") -> str:
    """Plot the validation and test accuracy by epoch."""
    scored = [each[f"{split}_accuracy"] for split in SPLITS for each in history.epochs if f"{split}_accuracy" in each]
    low, high = min(scored), max(scored)
    start = 0.0 if low < NEARLY_ZERO else min(math.floor(50 * low) / 50, 1 - LEAST_SPAN)
    end = min(1.005, max(high + 0.05 * (high - start), start + LEAST_SPAN))
    axes = _axes(history, (start, end))
    ticks = [(value, f"{100 * value:.3g} %") for value in drawing.round_values(start, end, 4)]
    axes.scale_y(ticks, f"{measure} (axis from {100 * start:.3g} %)" if start else measure)
    _epochs(axes, history, "accuracy", reported, end, [])
    return drawing.svg(f"Validation and test {measure} by epoch", axes)


def _axes(history: History, y: tuple[float, float]) -> Axes:
    """Make axes over steps, with room for a legend above."""
    top, last = 0.5 if history.resumes else 0.3, 1.02 * history.points[-1].step
    axes = Axes(2.2 + top, (0, last), y, left=0.75, right=0.1, top=top)
    axes.scale_x(((value, number(value)) for value in drawing.round_values(0, last, 6, 1)), "steps", "end")
    return axes


def _epochs(
    axes: Axes, history: History, score: str, reported: int | None, most: float, legend: list[tuple[str, str, str]]
) -> None:
    """Draw the scores by epoch, the reported epoch, the steps at which the run resumed, and the legend."""
    for split, (colour, rounding) in SPLITS.items():
        points = [(each["step"], each[f"{split}_{score}"]) for each in history.epochs if f"{split}_{score}" in each]
        if points:
            axes.line(points, colour, 1.3)
            axes.dots(points, colour, rounding)
            legend.append((f"{split} (chooses)" if split == "validation" else split, colour, "none"))
    steps = [record["step"] for record in history.epochs if record["epoch"] == reported][-1:]
    for label, marked, dashes in (("reported", steps, drawing.DASHED), ("resumed", history.resumes, drawing.DOTTED)):
        for step in marked:
            axes.line([(step, 0), (step, most)], drawing.GREY, 1, dashes)
        legend += [(label, drawing.GREY, dashes)] * bool(marked)
    axes.legend(legend)
