"""Colours of pages, figures and explanations."""

from __future__ import annotations

# Okabe and Ito's palette for colour-blind readers, in variants for light and for dark pages. Each has a contrast of at
# least 3:1 with the page and with cards (WCAG 2.2, 1.4.11). Figures are drawn with the light variants; on a page, the
# style sheet chooses (``drawing.svg``).
PALETTE = {
    "blue": ("#006aa6", "#56b4e9"),
    "orange": ("#b87800", "#e69f00"),
    "green": ("#00875f", "#2cc295"),
    "red": ("#c94f00", "#f08a3c"),
    "sky": ("#2f93cf", "#9ad0f5"),
    "pink": ("#b8558c", "#e09cc4"),
    "grey": ("#767c86", "#8d949e"),
}
BLUE, ORANGE, GREEN, RED, SKY, PINK, GREY = (light for light, _ in PALETTE.values())
# Backgrounds of text, translucent so that they suit light and dark pages.
FOR, AGAINST = "#0072b2", "#d55e00"
