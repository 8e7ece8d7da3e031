"""Colours of figures and explanations."""

# Okabe and Ito's palette for colour-blind readers; every colour is visible on white and on black.
BLUE, ORANGE, GREEN, RED, SKY, PINK = "#0072b2", "#e69f00", "#009e73", "#d55e00", "#56b4e9", "#cc79a7"
GREY = "#80868f"
