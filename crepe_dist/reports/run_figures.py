"""Training curves of one or several runs: loss, accuracy, learning rate, throughput."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from crepe_dist.reports import colours, drawing
from crepe_dist.runs.history import History
from crepe_dist.wording import cells, cut, number

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

SPLIT_COLOURS = {"validation": colours.ORANGE, "test": colours.GREEN}
RUN_COLOURS = (colours.BLUE, colours.ORANGE, colours.GREEN, colours.RED, colours.PINK, colours.SKY)
LINE_STYLES = ("-", "--", ":", "-.")
MAX_RUNS = len(RUN_COLOURS) * len(LINE_STYLES)
NAME_CELLS = 28


def loss(history: History) -> str:
    """Plot the train loss by step (mean and range, if a point stands for several), and the other losses by epoch."""
    with drawing.style():
        figure, axes = _axes(2.6, "loss (nats a document)", history)
        steps = [point.step for point in history.points]
        means = [point.means["loss"] for point in history.points]
        if history.width > 1:
            lows, highs = [point.low for point in history.points], [point.high for point in history.points]
            axes.fill_between(steps, lows, highs, color=colours.SKY, alpha=0.25, linewidth=0)
        axes.plot(steps, means, color=colours.BLUE, linewidth=1.3, label="train")
        _epochs(axes, history, "loss")
        _marks(axes, history)
        _from_zero(axes)
        # The first steps are often far above the rest: clip them.
        ordered = sorted(means)
        if ordered and means[0] > 2 * ordered[int(0.9 * (len(ordered) - 1))]:
            axes.set_ylim(top=2 * ordered[int(0.9 * (len(ordered) - 1))])
        _legend(axes)
        return drawing.svg(figure, "Train loss by step, validation and test loss by epoch")


def accuracy(history: History) -> str:
    """Plot the validation and test accuracy by epoch."""
    with drawing.style():
        figure, axes = _axes(2.2, "accuracy", history)
        _epochs(axes, history, "accuracy")
        _marks(axes, history)
        _percent(axes)
        _legend(axes)
        return drawing.svg(figure, "Validation and test accuracy by epoch")


def measured(history: History, name: str, label: str, description: str) -> str:
    """Plot one of ``history.MEASURED`` by step."""
    with drawing.style():
        figure, axes = _axes(1.5, label, history, legend=0)
        axes.plot([p.step for p in history.points], [p.means[name] for p in history.points], color=colours.BLUE,
                  linewidth=1)  # fmt: skip
        _marks(axes, history)
        _from_zero(axes)
        axes.yaxis.set_major_locator(_locator())
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:,g}")
        return drawing.svg(figure, description)


def compared(histories: Sequence[tuple[str, History]], key: str, label: str) -> str:
    """Plot a score by epoch, one curve per run.

    Args:
        histories: name and history of each run.
        key: name of the score in an epoch's record.
    """
    names = [cut(name, NAME_CELLS) for name, _ in histories[:MAX_RUNS]]
    with drawing.style():
        columns = _columns(names)
        figure, axes = _axes(2.5, label, legend=-(-len(names) // columns))
        for place, (name, (_, history)) in enumerate(zip(names, histories)):
            records = [record for record in history.epochs if key in record]
            axes.plot(
                [record["epoch"] for record in records],
                [record[key] for record in records],
                color=RUN_COLOURS[place % len(RUN_COLOURS)],
                linestyle=LINE_STYLES[place // len(RUN_COLOURS)],
                marker="o",
                markersize=3,
                linewidth=1.2,
                label=name,
            )
        axes.xaxis.set_major_locator(_locator(integer=True))
        if key.endswith("accuracy"):
            _percent(axes)
        else:
            _from_zero(axes)
        _legend(axes, columns)
        return drawing.svg(figure, f"{label} of {len(histories)} runs by epoch")


def _axes(height: float, label: str, history: History | None = None, *, legend: int = 1) -> tuple[Figure, Axes]:
    """Make axes over steps (with ``history``) or epochs, with room for ``legend`` lines of a legend above."""
    top = 0.1 + 0.2 * legend
    figure, axes = drawing.blank(height + top, left=0.85, right=0.2, top=top, bottom=0.45)
    axes.set(ylabel=label, xlabel="steps" if history else "epoch")
    axes.grid(axis="y")
    axes.set_axisbelow(True)
    if history:
        axes.set_xlim(0, 1.02 * history.points[-1].step)
        axes.xaxis.set_major_locator(_locator(integer=True))
        axes.xaxis.set_major_formatter(lambda value, _: number(value))
    return figure, axes


def _locator(*, integer: bool = False) -> MaxNLocator:
    return drawing.locator(6 if integer else 4, integer=integer)


def _epochs(axes: Axes, history: History, score: str) -> None:
    for split, colour in SPLIT_COLOURS.items():
        records = [record for record in history.epochs if f"{split}_{score}" in record]
        if records:
            steps = [record["step"] for record in records]
            values = [record[f"{split}_{score}"] for record in records]
            axes.plot(steps, values, color=colour, marker="o", markersize=3.5, linewidth=1.2, label=split)


def _marks(axes: Axes, history: History) -> None:
    """Mark the steps at which the run resumed, and the skipped steps."""
    for name, steps, colour in (("resumed", history.resumes, colours.GREY), ("skipped", history.skipped, colours.RED)):
        for place, step in enumerate(steps):
            axes.axvline(step, color=colour, linestyle=":", linewidth=1, label=name if not place else None)


def _from_zero(axes: Axes) -> None:
    """Start the y axis at 0, with some room at the top for nearly level lines."""
    axes.set_ylim(0, 1.06 * axes.get_ylim()[1])


def _percent(axes: Axes) -> None:
    axes.yaxis.set_major_locator(_locator())
    axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.3g} %")


def _columns(names: Sequence[str]) -> int:
    """Choose the number of legend columns so that all names fit."""
    widest = max(map(cells, names)) + 5  # the line sample and the gap between two columns
    return max(1, min(len(names), int((drawing.WIDTH - 1.05) / (widest * 0.6 * drawing.FONT_SIZE / 72))))


def _legend(axes: Axes, columns: int = 5) -> None:
    if axes.get_legend_handles_labels()[0]:
        axes.legend(
            loc="lower left", bbox_to_anchor=(0, 1), ncols=columns, borderpad=0, borderaxespad=0.4, handlelength=1.4
        )
