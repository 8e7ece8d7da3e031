"""Standard output whose reader may be gone."""

from __future__ import annotations

import os
import sys


def silence() -> None:
    """Discard what is still written to standard output, whose reader is gone."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
