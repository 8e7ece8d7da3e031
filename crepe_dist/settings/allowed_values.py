"""Values of flags and settings that other rooms use as well."""

from __future__ import annotations

from typing import Literal

Mode = Literal["paper", "full", "notebook"]
MODES: tuple[Mode, ...] = ("paper", "full", "notebook")  # of the encoding; see data/alphabet.py
LONGEST_DOCUMENT = 1 << 20  # characters
DEVICES = ("auto", "gpu", "cpu")
HEADERS = ("auto", "yes", "no")  # whether the first line of a CSV or TSV file names the columns
