"""Validated dataclasses of settings: pydantic checks every value, and errors become a ``UserError``."""

from __future__ import annotations

from dataclasses import fields
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, Literal, Union, get_args, get_origin

from pydantic import (
    AfterValidator,
    ConfigDict,
    ModelWrapValidatorHandler,
    StringConstraints,
    ValidationError,
    model_validator,
)
from pydantic.dataclasses import dataclass
from pydantic_core import ArgsKwargs

from crepe_dist.errors import UserError
from crepe_dist.settings.limits import Limits, near, shortened

# Records and manifests store names as UTF-8 text. A blank name is a mistake.
Name = Annotated[str, StringConstraints(pattern=r"^[^\x00]*[^\x00\s][^\x00]*$")]
LONGEST_TITLE = 80


def is_title(text: str) -> bool:
    """Return whether a text can name a run on a line of its own."""
    return 0 < len(text) <= LONGEST_TITLE and text.isprintable() and text == text.strip()


def _title(text: str) -> str:
    if not is_title(text):
        raise ValueError
    return text


Title = Annotated[str, AfterValidator(_title)]
TEXTS = MappingProxyType(
    {Name: "a name in UTF-8", Title: f"1 to {LONGEST_TITLE} printable characters, with no space at either end"}
)
NOUNS = MappingProxyType({bool: "true or false", int: "a whole number", float: "a number"})


@dataclass(config=ConfigDict(strict=True, extra="forbid", allow_inf_nan=False))
class Settings:
    """Base of all dataclasses of settings.

    Args:
        group: name of the group of settings; empty for ungrouped settings.

    Raises:
        UserError: an unknown setting, or a value of another type or outside its limits.
    """

    group: ClassVar[str] = ""

    def __init_subclass__(cls, group: str = "") -> None:
        cls.group = group

    @model_validator(mode="wrap")
    @classmethod
    def _explain(cls, args: Any, handler: ModelWrapValidatorHandler[Settings]) -> Settings:
        try:
            return handler(args)
        except ValidationError as error:
            place = error.errors(include_url=False)[0]["loc"]
            if not place:  # no settings at all
                given = f"{cls.group or cls.__name__} is {shortened(args)}"
                raise UserError(
                    given, "that is a group of settings", f"give {cls.__name__}({next(iter(typed(cls)))}=…)"
                ) from error
            name = str(place[0])
            hints = typed(cls)
            dotted = f"{cls.group}.{name}" if cls.group else name
            if name not in hints or not isinstance(args, ArgsKwargs):
                raise UserError(
                    f"there is no setting {dotted}", remedy=near(name, hints) or f"the settings are {', '.join(hints)}"
                ) from error
            value = {**dict(zip(hints, args.args)), **(args.kwargs or {})}[name]
            raise UserError(f"{dotted} is {shortened(value)}", remedy=_remedy(value, hints[name])) from error


def typed(settings: type[Settings]) -> dict[str, Any]:
    """Map a dataclass's fields to their types; its module must not postpone annotations."""
    return {field.name: field.type for field in fields(settings)}


def alternatives(hint: Any) -> tuple[Any, ...]:
    """Return the types that a setting accepts."""
    return get_args(hint) if get_origin(hint) is Union else (hint,)


def choices(hint: Any) -> tuple[str, ...]:
    """Return the words that a setting accepts."""
    return tuple(choice for kind in alternatives(hint) if get_origin(kind) is Literal for choice in get_args(kind))


def limits(hint: Any) -> Limits | None:
    """Return the limits of a numeric type, optional or not; ``None`` if it has none."""
    return next((part for kind in alternatives(hint) for part in get_args(kind) if isinstance(part, Limits)), None)


def wanted(hint: Any) -> str:
    """Describe the values that a setting accepts."""
    return " or ".join(_described(kind) for kind in alternatives(hint) if kind is not type(None))


def _described(kind: Any) -> str:
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Literal:
        return f"one of {', '.join(inner)}"
    if origin is list:
        return f"a list such as [1, 2], each {wanted(inner[0])}"
    if origin is dict:
        return f'names with values such as {{"a": 2}}, each {wanted(inner[1])}'
    if origin is Annotated:
        return TEXTS.get(kind) or str(limits(kind))
    return NOUNS[kind]


def _remedy(value: object, hint: Any) -> str:
    return near(str(value), choices(hint)) or f"give {wanted(hint)}"
