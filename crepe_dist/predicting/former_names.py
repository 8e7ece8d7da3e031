"""Former names of public attributes, which are accepted but not documented."""

from collections.abc import Callable, Mapping
from operator import attrgetter
from typing import Any, TypeVar

Class = TypeVar("Class", bound=type)


def accept_former_names(names: Mapping[str, str]) -> Callable[[Class], Class]:
    """Return a class decorator that lets users read and set attributes and methods by their former names.

    Args:
        names: Mapping from former names to current names.
    """

    def decorate(decorated: Class) -> Class:
        for former, current in names.items():
            setattr(decorated, former, _alias(current))
        return decorated

    return decorate


def _alias(name: str) -> property:
    def set_attribute(instance: Any, value: Any) -> None:
        setattr(instance, name, value)

    # Without ``doc``, the help would show the docstring of ``attrgetter``.
    return property(attrgetter(name), set_attribute, doc="")
