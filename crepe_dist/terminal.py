"""Handling of a closed standard output, as in ``command | head``."""

from __future__ import annotations

import os
import sys


def silence() -> None:
    """Redirect standard output to ``/dev/null``, so that flushing it at exit does not raise ``BrokenPipeError``."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
