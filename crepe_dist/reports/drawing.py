"""Figures as inline SVG: axes with bars, lines and texts, in the colours of the page's style sheet.

Only the reader's browser knows the widths of texts, so margins are estimates. The same data give the same bytes.
"""

from __future__ import annotations

import html
import math
from collections.abc import Iterable

from rich.cells import cell_len

# Okabe and Ito's palette for colour-blind readers, in variants for light and for dark pages, between which the style
# sheet chooses. Each has a contrast of at least 3:1 with the page and with cards (WCAG 2.2, 1.4.11).
PALETTE = {
    "blue": ("#006aa6", "#56b4e9"),
    "orange": ("#b87800", "#e69f00"),
    "green": ("#00875f", "#2cc295"),
    "red": ("#c94f00", "#f08a3c"),
    "sky": ("#2f93cf", "#9ad0f5"),
    "pink": ("#b8558c", "#e09cc4"),
    "grey": ("#767c86", "#8d949e"),
}
BLUE, ORANGE, GREEN, RED, SKY, PINK, GREY = (f"var(--{name})" for name in PALETTE)
# Backgrounds of text, translucent so that they suit light and dark pages.
FOR, AGAINST = "#0072b2", "#d55e00"

WIDTH = 5.0  # inches
POINTS = 72  # of an inch
FONT_SIZE = 9.0  # points
DASHED, DOTTED = "4 2", "1 2"
IN_A_ROW = 4  # entries of a legend
Limits = tuple[float, float]
Points = Iterable[tuple[float, float]]


class Axes:
    """Axes of a figure; what is added later is drawn above.

    Args:
        height: that of the figure, in inches.
        x, y: values at the left and right, and at the lower and upper edge.
        left, right, bottom, top: margins in inches.
    """

    def __init__(
        self, height: float, x: Limits, y: Limits, left: float, right: float = 0.15, bottom: float = 0.45,
        top: float = 0.1,
    ) -> None:  # fmt: skip
        self.height = POINTS * height
        self.parts: list[str] = []
        self._limits = x, y
        self._ends = (POINTS * left, POINTS * (WIDTH - right)), (POINTS * (height - bottom), POINTS * top)

    def bar(self, x: float, y: float, width: float, height: float, colour: str, opacity: float = 1.0) -> None:
        """Draw a rectangle from the values ``x`` and ``y``."""
        (x0, y0), (x1, y1) = self._at(x, y), self._at(x + width, y + height)
        self._box(x0, min(y0, y1), x1 - x0, abs(y1 - y0), colour, opacity)

    def line(
        self, points: Points, colour: str, width: float = 1.0, dashes: str = "none", opacity: float = 1.0,
        fill: str = "none",
    ) -> None:  # fmt: skip
        """Draw a line through points, or fill what it encloses."""
        where = " ".join(f"{x:.2f},{y:.2f}" for x, y in (self._at(*point) for point in points))
        self._path(where, f"fill: {fill}; opacity: {opacity}; stroke-width: {width}", colour, dashes)

    def dots(self, points: Points, colour: str, rounding: float = 1.8) -> None:
        """Draw a dot at each point, or with less rounding a square."""
        for x, y in (self._at(*point) for point in points):
            self._box(x - 1.8, y - 1.8, 3.6, 3.6, colour, rounding=rounding)

    def text(
        self, x: float, y: float, text: str, shift: tuple[float, float] = (0, 0), anchor: str = "middle",
        size: float = FONT_SIZE, turn: int = 0,
    ) -> None:  # fmt: skip
        """Write a text at the values ``x`` and ``y``, shifted right and down by points, turned by degrees."""
        (x, y), (right, down) = self._at(x, y), shift
        self._write(x + right, y + down, text, anchor, size, turn)

    def scale_x(self, ticks: Iterable[tuple[float, str]], label: str = "", anchor: str = "middle") -> None:
        """Draw the horizontal axis: ticks with their texts, and a label below, which ends at the right with "end"."""
        (left, right), (bottom, _) = self._limits
        self.line([(left, bottom), (right, bottom)], GREY, 0.8)
        for value, text in ticks:
            x, y = self._at(value, bottom)
            self._box(x - 0.4, y, 0.8, 3.5, GREY)
            self._write(x, y + 10, text)
        self.text(right if anchor == "end" else (left + right) / 2, bottom, label, (0, 24), anchor)

    def scale_y(self, ticks: Iterable[tuple[float, str]], label: str = "") -> None:
        """Draw the vertical axis: ticks with their texts and lines across, and a label at the left."""
        (left, right), (bottom, top) = self._limits
        for value, text in ticks:
            self.line([(left, value), (right, value)], GREY, 0.8, opacity=0.25)
            self.text(left, value, text, (-5, 0), "end")
        self.line([(left, bottom), (left, top)], GREY, 0.8)
        self._write(8, sum(self._ends[1]) / 2, label, turn=-90)

    def legend(self, entries: Iterable[tuple[str, str, str]]) -> None:
        """Draw a legend above the axes: label and colour of each entry, and dashes of its line ("": a bar)."""
        (left, _), (_, top) = self._ends
        for number, (label, colour, dashes) in enumerate(entries):
            if number % IN_A_ROW == 0:
                x, y = left, top - 10 - 13 * (number // IN_A_ROW)
            if dashes:
                self._path(f"{x:.2f},{y:.2f} h13", "stroke-width: 1.6", colour, dashes)
            else:
                self._box(x, y - 3.5, 9, 7, colour)
            self._write(x + 17, y, label, "start")
            x += 28 + 0.52 * FONT_SIZE * cell_len(label)

    def _at(self, x: float, y: float) -> tuple[float, float]:
        """Return the position of values, in points; those beyond the limits are at the edge."""
        shares = [(value - low) / (high - low) for value, (low, high) in zip((x, y), self._limits)]
        x, y = (start + min(max(share, 0), 1) * (end - start) for share, (start, end) in zip(shares, self._ends))
        return x, y

    def _box(
        self, x: float, y: float, width: float, height: float, colour: str, opacity: float = 1.0, rounding: float = 0.0
    ) -> None:
        where = f'x="{x:.2f}" y="{y:.2f}" width="{width:.2f}" height="{height:.2f}" rx="{rounding}"'
        self.parts.append(f'<rect {where} style="fill: {colour}; opacity: {opacity:.3g}"/>')

    def _path(self, where: str, style: str, colour: str, dashes: str) -> None:
        self.parts.append(f'<path d="M{where}" style="{style}; stroke: {colour}; stroke-dasharray: {dashes}"/>')

    def _write(
        self, x: float, y: float, text: str, anchor: str = "middle", size: float = FONT_SIZE, turn: int = 0
    ) -> None:
        where = f'x="{x:.2f}" y="{y:.2f}" dy=".35em"' + f' transform="rotate({turn} {x:.2f} {y:.2f})"' * (turn != 0)
        style = f"font-size: {size:.3g}px; text-anchor: {anchor}"
        self.parts.append(f'<text {where} style="{style}">{html.escape(text)}</text>')


def svg(description: str, *axes: Axes) -> str:
    """Return a figure as an ``<svg>`` element; ``description`` is for screen readers."""
    view = f'viewBox="0 0 {POINTS * WIDTH:g} {axes[0].height:.2f}"'
    parts = "\n".join(part for each in axes for part in each.parts)
    return f'<svg {view} role="img" aria-label="{html.escape(description)}">{parts}</svg>'


def round_values(low: float, high: float, most: int, least: float = 0.0) -> list[float]:
    """Return round values between two others, at most ``most`` + 1 of them and ``least`` apart."""
    power = 10.0 ** math.floor(math.log10((high - low) / most))
    step = max(least, next(power * factor for factor in (1, 2, 5, 10) if high - low <= most * power * factor))
    return [step * number for number in range(math.ceil(low / step), math.floor(high / step) + 1)]


def margin(labels: list[str]) -> float:
    """Estimate the margin in inches that these labels need beside an axis."""
    widest = max(map(cell_len, labels), default=0)
    return 0.15 + widest * 0.6 * FONT_SIZE / POINTS
