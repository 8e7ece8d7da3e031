"""JSON files of this package: a format version, the types of their values, and a seal.

The type of a file is a dataclass or a ``TypedDict``. A ``TypedDict`` allows further keys; a dataclass allows none. A
sealed file ends with the SHA-256 of its other values, so it holds what this package wrote.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from crepe_dist.errors import UserError
from crepe_dist.files import finite, integer, read_json, write_json

FORMAT, SEAL = "format", "sha256"  # first and last key
LARGEST = 1 << 53
T = TypeVar("T")


def seal(values: dict[str, Any]) -> str:
    """Compute the SHA-256 of the values of a file, without its seal."""
    others = {name: value for name, value in values.items() if name != SEAL}
    return hashlib.sha256(json.dumps(others, sort_keys=True).encode()).hexdigest()


def write_sealed(path: Path, version: int, values: dict[str, Any]) -> None:
    """Write a sealed file atomically."""
    values = {FORMAT: version, **values}
    values.pop(SEAL, None)
    write_json(path, {**values, SEAL: seal(values)})


def read_record(path: Path, kind: type[T], version: int, remedy: str, *, is_sealed: bool = False) -> T:
    """Read a file of this package.

    Args:
        kind: type of the values; ``dict`` leaves them unchecked, which is enough for a sealed file.
        remedy: what a user does about a file that is damaged or of another version.

    Raises:
        UserError: the file cannot be read, has another version, was altered, or does not have the type.
    """
    try:
        values: dict[str, Any] = read_json(path, follow=False)
        if values[FORMAT] != version:
            found = str(values[FORMAT])[:40]
            raise UserError(f"{path} has format {found}; this version reads format {version}", remedy=remedy)
        if is_sealed and values[SEAL] != seal(values):
            raise ValueError("it was altered since it was written: its SHA-256 is not the one in its last line")
        record: T = typed(values, kind)
        return record
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise damaged(path, error, remedy) from error


def damaged(path: object, error: Exception, remedy: str) -> UserError:
    """Return the error for a file or folder of this package with other content than it should have."""
    why = f"{error.args[0]} is missing" if isinstance(error, KeyError) else str(error)
    return UserError(f"{path} is damaged", why[:300], remedy)


def typed(value: Any, kind: Any, name: str = "the file") -> Any:
    """Return a value from JSON as a type: lists become tuples and objects dataclasses where the type says so.

    Raises:
        KeyError: an object has no such key.
        ValueError: the value is not of the type, or a number that is not finite or larger than 2^53.
    """
    origin, inner = get_origin(kind) or kind, get_args(kind)
    needed = getattr(kind, "__required_keys__", None)  # of a TypedDict
    if kind is Any or (origin is Literal and value in inner) or (kind in (bool, str) and type(value) is kind):
        return value
    if kind is float:
        return finite(value, name=name)
    if kind is int:
        return integer(value, -LARGEST, LARGEST, name)
    if origin is Union and type(None) in inner:
        return None if value is None else typed(value, inner[0], name)
    if origin in (list, tuple) and type(value) is list:
        kinds = inner if origin is tuple and inner[-1] is not ... else [inner[0]] * len(value)
        if len(kinds) == len(value):
            return origin(typed(each, one, f"a value of {name}") for each, one in zip(value, kinds))
    elif type(value) is dict and (origin is dict or needed is not None or is_dataclass(kind)):
        if origin is dict:
            return {key: typed(each, inner[1], key) for key, each in value.items()} if inner else value
        hints = get_type_hints(kind)
        if needed is not None:
            return {**value, **{key: typed(value[key], hints[key], key) for key in {*needed, *hints.keys() & value}}}
        usual = {each.name for each in fields(kind) if each.default is not MISSING}
        if unknown := value.keys() - hints.keys() - {FORMAT, SEAL}:
            raise ValueError(f"it has a value {min(unknown)[:80]!r}")
        return kind(**{key: typed(value[key], hints[key], key) for key in hints if key in value or key not in usual})
    raise ValueError(f"{name} is {str(value)[:40]!r}, not {getattr(kind, '__name__', kind)}")
