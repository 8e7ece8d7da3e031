"""Values that flags and settings accept and that other rooms act on."""

from __future__ import annotations

from typing import Literal

Mode = Literal["paper", "full", "notebook"]
MODES: tuple[Mode, ...] = ("paper", "full", "notebook")  # of the encoding; see data/alphabet.py
LONGEST_DOCUMENT = 1 << 20  # characters
DEVICES = ("auto", "gpu", "cpu")
HEADERS = ("auto", "yes", "no")  # of a CSV or TSV file: does its first line name the columns?
