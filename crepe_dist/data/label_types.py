"""Types of labels in Python. Classes have names, and a table in memory may have had labels of another type."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

BOOL, INT, FLOAT = "bool", "int", "float"
LABEL_TYPES: dict[str, Callable[[str], Any]] = {
    BOOL: {"true": True, "false": False}.__getitem__,
    INT: int,
    FLOAT: float,
}


def to_label_type(classes: Sequence[str], label_type: str) -> list[Any]:
    """Return the labels that classes are named after.

    Args:
        label_type: one of ``LABEL_TYPES``; empty: text.

    Raises:
        ValueError: a class does not have the name of such a label.
    """
    try:
        return list(map(LABEL_TYPES[label_type], classes)) if label_type else list(classes)
    except KeyError as error:
        raise ValueError(f"the class {error.args[0]!r:.40} is not of type {label_type}") from None
