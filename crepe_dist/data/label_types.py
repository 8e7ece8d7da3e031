"""Python types of labels. Classes are stored as names, but the labels in a data frame may have another type."""

from collections.abc import Callable, Sequence
from typing import Any

BOOL, INT, FLOAT = "bool", "int", "float"
LABEL_TYPES: dict[str, Callable[[str], Any]] = {
    BOOL: {"true": True, "false": False}.__getitem__,
    INT: int,
    FLOAT: float,
}


def to_label_type(classes: Sequence[str], label_type: str) -> list[Any]:
    """Convert class names back to the labels that they were made from.

    Args:
        label_type: One of ``LABEL_TYPES``; empty for text.

    Raises:
        ValueError: A class name cannot be converted to this type.
    """
    try:
        return list(map(LABEL_TYPES[label_type], classes)) if label_type else list(classes)
    except KeyError as error:
        raise ValueError(f"the class {error.args[0]!r:.40} is not of type {label_type}") from None
