"""Settings: fields of dataclasses with their help and the kind of their values, from which flags are made."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import Field, dataclass, field, fields
from typing import Any, ClassVar, get_args

from crepe_dist.errors import UserError
from crepe_dist.settings.limits import Kind, OrNull, Truth, Words, near, shortened


def setting(default: Any, help: str, kind: Kind | None = None) -> Any:
    """Declare a setting as a field of a dataclass whose module does not postpone annotations.

    Args:
        default: default value; ``None``: null is accepted, too.
        kind: kind of its values; ``None``: the words of the field's ``Literal``, or true and false.
    """
    return field(default=default, metadata={"help": help, "kind": kind})


def kind_of(setting: Field[Any]) -> Kind:
    """Return the kind of a setting's values."""
    kind: Kind = setting.metadata["kind"] or (Truth() if setting.type is bool else Words(get_args(setting.type)))
    return OrNull(kind) if setting.default is None else kind


@dataclass
class Settings:
    """Base of the groups of settings.

    Args:
        group: name of the group; empty for ungrouped settings.

    Raises:
        UserError: a value is of another kind.
    """

    group: ClassVar[str] = ""

    def __init_subclass__(cls, group: str = "") -> None:
        cls.group = group

    def __post_init__(self) -> None:
        for each in fields(self):
            value = getattr(self, each.name)
            if "kind" in each.metadata:
                kind = kind_of(each)
                try:
                    setattr(self, each.name, kind.check(value))
                except (ValueError, TypeError):
                    remedy = near(str(value), getattr(kind, "words", ())) or f"give {kind}"
                    raise UserError(f"{dotted(type(self), each)} is {shortened(value)}", remedy=remedy) from None
            elif not isinstance(value, each.type):  # type: ignore[arg-type]
                raise UserError(f"{each.name} is {shortened(value)}", remedy=f"give {each.type.__name__}(…)")  # type: ignore[union-attr]


def settings_of(group: type[Settings]) -> list[Field[Any]]:
    """List the settings of a group, without groups within."""
    return [each for each in fields(group) if "kind" in each.metadata]


def dotted(group: type[Settings], setting: Field[Any]) -> str:
    """Return the full name of a setting, as in files."""
    return f"{group.group}.{setting.name}" if group.group else setting.name


def add_settings(
    flags: argparse._ActionsContainer, group: type[Settings], flag: Callable[[str], str], **default: Any
) -> None:
    """Add the flags of a group's settings.

    Args:
        flag: function that returns the flag of a setting, given its dotted name.
        default: ``default=argparse.SUPPRESS`` for a namespace of the flags that were given, by their dotted names.
    """
    for each in settings_of(group):
        kind, name = kind_of(each), dotted(group, each)
        words = kind.words if isinstance(kind, Words) else None
        usual = each.default if isinstance(each.default, str) else json.dumps(each.default)
        flags.add_argument(
            flag(name),
            dest=name,
            type=str if words else kind,
            nargs="?" if each.type is bool else None,
            const=True if each.type is bool else None,
            choices=words,
            metavar=None if words else kind.metavar or each.name.upper(),
            help=f"{each.metadata['help']} ({'' if words else f'{kind}; '}default: {usual})".replace("%", "%%"),
            **{"default": each.default, **default},
        )
