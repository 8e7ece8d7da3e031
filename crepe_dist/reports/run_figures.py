"""Training curves of a run: loss, accuracy, learning rate, throughput."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from crepe_dist.reports import colours, drawing
from crepe_dist.runs.history import MOST_POINTS, History
from crepe_dist.wording import cut, number, percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

SPLIT_COLOURS = {"validation": colours.ORANGE, "test": colours.GREEN}
SPLIT_MARKERS = {"validation": "s", "test": "o"}
READOUT_CELLS = 72
MAX_READOUTS = 2 * MOST_POINTS
FEWEST_SMOOTHED = 20  # points; fewer are shown as they are
SPAN = 1 / 30  # share of the points that the moving average spans
LEAST_SPAN = 0.04  # of an accuracy axis, so that differences that are chance look small
NEARLY_ZERO = 0.25  # an accuracy axis that would start below this starts at 0


def loss(history: History, reported: int | None = None) -> str:
    """Plot the train loss by step, smoothed over the raw values, and the other losses by epoch."""
    with drawing.style():
        figure, axes = _axes("loss", history)
        steps = [point.step for point in history.points]
        means = [point.means["loss"] for point in history.points]
        if history.width > 1:
            lows, highs = [point.low for point in history.points], [point.high for point in history.points]
            axes.fill_between(steps, lows, highs, color=colours.SKY, alpha=0.25, linewidth=0)
        if is_smoothed(history):
            axes.plot(steps, means, color=colours.SKY, linewidth=0.9, alpha=0.5)
        axes.plot(steps, smoothed(means), color=colours.BLUE, linewidth=1.6, label="train")
        _epochs(axes, history, "loss", reported)
        _marks(axes, history)
        _from_zero(axes)
        # The first steps are often far above the rest: clip them.
        ordered = sorted(means)
        if ordered and means[0] > 2 * ordered[int(0.9 * (len(ordered) - 1))]:
            axes.set_ylim(top=2 * ordered[int(0.9 * (len(ordered) - 1))])
            axes.set_ylabel(f"loss (at first up to {ordered[-1]:.2f})")
        _legend(axes)
        values = [
            (point.step, f"step {number(point.step)}: train {mean:.4f}{_losses(history, point.step)}")
            for point, mean in zip(history.points, smoothed(means))
        ]
        return drawing.svg(figure, "Train loss by step, validation and test loss by epoch", _readouts(axes, values))


def is_smoothed(history: History) -> bool:
    return len(history.points) >= FEWEST_SMOOTHED


def smoothed(values: Sequence[float]) -> list[float]:
    """Return the exponential moving average of values in both directions, so that it does not lag; few as they are."""
    if len(values) < FEWEST_SMOOTHED:
        return list(values)
    keep = 1 - 2 / (1 + max(1.0, SPAN * len(values)))
    forwards, backwards = _moving_average(values, keep), _moving_average(values[::-1], keep)[::-1]
    return [(one + other) / 2 for one, other in zip(forwards, backwards)]


def _moving_average(values: Sequence[float], keep: float) -> list[float]:
    """Return the exponential moving average without the bias to its start."""
    mean, weight, means = 0.0, 0.0, []
    for value in values:
        mean, weight = keep * mean + (1 - keep) * value, keep * weight + 1 - keep
        means.append(mean / weight)
    return means


def accuracy(history: History, reported: int | None = None, measure: str = "accuracy") -> str:
    """Plot the validation and test accuracy by epoch."""
    with drawing.style():
        figure, axes = _axes(measure, history)
        _epochs(axes, history, "accuracy", reported)
        _marks(axes, history)
        _percent(axes)
        _legend(axes)
        values = [
            (epoch["step"], f"epoch {epoch['epoch']}: " + _scores(epoch, "accuracy", percent))
            for epoch in history.epochs
        ]
        return drawing.svg(figure, f"Validation and test {measure} by epoch", _readouts(axes, values))


def measured(history: History, name: str, label: str, description: str) -> str:
    """Plot one of ``history.MEASURED`` by step."""
    with drawing.style():
        figure, axes = _axes(label, history, legend=0, height=1.5)
        axes.plot([p.step for p in history.points], [p.means[name] for p in history.points], color=colours.BLUE,
                  linewidth=1.2)  # fmt: skip
        _marks(axes, history)
        _from_zero(axes)
        axes.yaxis.set_major_locator(_locator())
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:,g}")
        values = [(p.step, f"step {number(p.step)}: {_short(p.means[name])}") for p in history.points]
        return drawing.svg(figure, description, _readouts(axes, values))


def _axes(label: str, history: History, *, legend: int = 1, height: float = 2.2) -> tuple[Figure, Axes]:
    """Make axes over steps, with room for ``legend`` lines of a legend above."""
    if legend and (history.resumes or history.skipped):
        legend += 1
    top = 0.1 + 0.2 * legend
    figure, axes = drawing.blank(height + top, left=0.75, right=0.1, top=top, bottom=0.45)
    axes.set_ylabel(label)
    axes.set_xlabel("steps", loc="right")
    axes.grid(axis="y")
    axes.set_xlim(0, 1.02 * history.points[-1].step)
    axes.xaxis.set_major_locator(_locator(integer=True))
    axes.xaxis.set_major_formatter(lambda value, _: number(value))
    return figure, axes


def _locator(*, integer: bool = False) -> MaxNLocator:
    return drawing.locator(6 if integer else 4, integer=integer)


def _epochs(axes: Axes, history: History, score: str, reported: int | None) -> None:
    for split, colour in SPLIT_COLOURS.items():
        records = [record for record in history.epochs if f"{split}_{score}" in record]
        if not records:
            continue
        steps = [record["step"] for record in records]
        values = [record[f"{split}_{score}"] for record in records]
        label = f"{split} (chooses)" if split == "validation" else split
        axes.plot(steps, values, color=colour, marker=SPLIT_MARKERS[split], markersize=3.5, linewidth=1.3, label=label)
    steps = [record["step"] for record in history.epochs if record["epoch"] == reported]
    if steps:
        axes.axvline(steps[-1], color=colours.GREY, linestyle="--", linewidth=1, label="reported")


def _losses(history: History, step: int) -> str:
    """List the losses of the epoch that ended last before a step."""
    ended = [epoch for epoch in history.epochs if epoch["step"] <= step]
    return f", {_scores(ended[-1], 'loss', _short)}" if ended else ""


def _scores(epoch: dict[str, Any], score: str, form: Callable[[float], str]) -> str:
    splits = [split for split in SPLIT_COLOURS if f"{split}_{score}" in epoch]
    return ", ".join(f"{split} {form(epoch[f'{split}_{score}'])}" for split in splits)


def _short(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.4g}"


def _readouts(axes: Axes, values: Sequence[tuple[float, str]]) -> str:
    every = -(-len(values) // MAX_READOUTS) or 1
    return drawing.readouts(axes, [(x, cut(text, READOUT_CELLS)) for x, text in sorted(values)[::every]])


def _marks(axes: Axes, history: History) -> None:
    """Mark the steps at which the run resumed, and the skipped steps."""
    for name, steps, colour in (("resumed", history.resumes, colours.GREY), ("skipped", history.skipped, colours.RED)):
        for index, step in enumerate(steps):
            axes.axvline(step, color=colour, linestyle=":", linewidth=1, label=name if not index else None)


def _from_zero(axes: Axes) -> None:
    """Start the y axis at 0, with some room at the top for nearly level lines."""
    axes.set_ylim(0, 1.06 * axes.get_ylim()[1])


def _percent(axes: Axes) -> None:
    """Start the y axis at a tick, and say so if it is not 0."""
    low, high = axes.dataLim.intervaly
    if not low <= high:
        low, high = 0.0, 1.0  # nothing is drawn
    spare = max(0.0, LEAST_SPAN - (high - low))
    high = min(1.0, max(high + spare / 2, LEAST_SPAN))
    low = min(low, high - LEAST_SPAN)
    ticks = _locator().tick_values(0.0 if low < NEARLY_ZERO else low, high)
    ticks = [tick for tick in ticks if -1e-9 < tick < 1 + 1e-9]
    axes.set_ylim(ticks[0], min(1.01, max(ticks[-1], high + 0.04 * (high - ticks[0]))))
    axes.set_yticks(ticks, [f"{100 * tick:.3g} %" for tick in ticks])
    if ticks[0] > 1e-9:
        axes.set_ylabel(f"{axes.get_ylabel()} (axis from {100 * ticks[0]:.3g} %)")


def _legend(axes: Axes) -> None:
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=4, borderpad=0, borderaxespad=0.4,
                    handlelength=1.4, columnspacing=1.2)  # fmt: skip
