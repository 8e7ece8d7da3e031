"""Curves of a run, or of several: loss, accuracy, learning rate, speed."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from crepe_dist.reports import colours, drawing
from crepe_dist.runs.history import History
from crepe_dist.wording import cells, cut, number

PARTS = {"validation": colours.ORANGE, "test": colours.GREEN}
# In the order in which runs are given.
RUNS = (colours.BLUE, colours.ORANGE, colours.GREEN, colours.RED, colours.PINK, colours.SKY)
STYLES = ("-", "--", ":", "-.")
MOST_RUNS = len(RUNS) * len(STYLES)
NAME = 28  # cells


def loss(history: History) -> str:
    """Of the steps (with its range where a point stands for several) and of the parts after each epoch."""
    with drawing.look():
        figure, axes = _axes(2.6, "loss (nats a document)", history)
        steps = [point.step for point in history.points]
        means = [point.means["loss"] for point in history.points]
        if history.width > 1:
            lows, highs = [point.low for point in history.points], [point.high for point in history.points]
            axes.fill_between(steps, lows, highs, color=colours.SKY, alpha=0.25, linewidth=0)
        axes.plot(steps, means, color=colours.BLUE, linewidth=1.3, label="train")
        _epochs(axes, history, "loss")
        _marks(axes, history)
        # The first steps are often far above the rest.
        ordered = sorted(means)
        _from_zero(axes)
        if ordered and means[0] > 2 * ordered[int(0.9 * (len(ordered) - 1))]:
            axes.set_ylim(top=2 * ordered[int(0.9 * (len(ordered) - 1))])
        _legend(axes)
        return drawing.svg(figure, "Loss of the steps, and of the parts after each epoch")


def accuracy(history: History) -> str:
    """Of the parts that are not trained on, after each epoch."""
    with drawing.look():
        figure, axes = _axes(2.2, "right answers", history)
        _epochs(axes, history, "accuracy")
        _marks(axes, history)
        _percent(axes)
        _legend(axes)
        return drawing.svg(figure, "Accuracy of the parts after each epoch")


def measured(history: History, name: str, label: str, description: str) -> str:
    """One of ``history.MEASURED`` over the steps."""
    with drawing.look():
        figure, axes = _axes(1.5, label, history, legend=0)
        axes.plot([p.step for p in history.points], [p.means[name] for p in history.points], color=colours.BLUE,
                  linewidth=1)  # fmt: skip
        _marks(axes, history)
        _from_zero(axes)
        axes.yaxis.set_major_locator(_locator())
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:,g}")
        return drawing.svg(figure, description)


def compared(histories: Sequence[tuple[str, History]], key: str, label: str) -> str:
    """A score of each run after each epoch, one curve a run.

    Args:
        histories: name and history of each run.
        key: of the record of an epoch.
    """
    names = [cut(name, NAME) for name, _ in histories[:MOST_RUNS]]
    with drawing.look():
        columns = _columns(names)
        figure, axes = _axes(2.5, label, legend=-(-len(names) // columns))
        for place, (name, (_, history)) in enumerate(zip(names, histories)):
            records = [record for record in history.epochs if key in record]
            axes.plot(
                [record["epoch"] for record in records],
                [record[key] for record in records],
                color=RUNS[place % len(RUNS)],
                linestyle=STYLES[place // len(RUNS)],
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
        return drawing.svg(figure, f"{label} of {len(histories)} runs after each epoch")


def _axes(height: float, label: str, history: History | None = None, *, legend: int = 1) -> tuple[Figure, Axes]:
    """Axes over the steps of a run, or over epochs, below so many lines of a legend."""
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
    return MaxNLocator(6 if integer else 4, integer=integer)


def _epochs(axes: Axes, history: History, score: str) -> None:
    for part, colour in PARTS.items():
        records = [record for record in history.epochs if f"{part}_{score}" in record]
        if records:
            steps = [record["step"] for record in records]
            values = [record[f"{part}_{score}"] for record in records]
            axes.plot(steps, values, color=colour, marker="o", markersize=3.5, linewidth=1.2, label=part)


def _marks(axes: Axes, history: History) -> None:
    """Where a run went on, and steps that were left out."""
    for name, steps, colour in (("went on", history.resumes, colours.GREY), ("left out", history.skipped, colours.RED)):
        for place, step in enumerate(steps):
            axes.axvline(step, color=colour, linestyle=":", linewidth=1, label=name if not place else None)


def _from_zero(axes: Axes) -> None:
    """With room above: a line that is nearly level would run along the edge."""
    axes.set_ylim(0, 1.06 * axes.get_ylim()[1])


def _percent(axes: Axes) -> None:
    axes.yaxis.set_major_locator(_locator())
    axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.3g} %")


def _columns(names: Sequence[str]) -> int:
    """Of a legend in which all of these have room."""
    widest = max(map(cells, names)) + 5  # the line before it, and the space behind
    return max(1, min(len(names), int((drawing.WIDTH - 1.05) / (widest * 0.6 * drawing.LETTER / 72))))


def _legend(axes: Axes, columns: int = 5) -> None:
    if axes.get_legend_handles_labels()[0]:
        axes.legend(
            loc="lower left", bbox_to_anchor=(0, 1), ncols=columns, borderpad=0, borderaxespad=0.4, handlelength=1.4
        )
