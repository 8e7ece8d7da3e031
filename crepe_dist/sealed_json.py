"""JSON files of this package with a format version. They are protected by a checksum or by a check of their types.

A sealed file ends with the SHA-256 of its other values, which detects changes and damage. A file that other programs
may write has no checksum, so the types of its values are checked.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, get_args, get_origin

from crepe_dist.errors import UserError
from crepe_dist.files.json_file import parse_finite, parse_integer, read_json, write_json

FORMAT, SEAL = "format", "sha256"  # First and last key of a sealed file.
MAX_INTEGER = 1 << 53  # Largest integer that JSON readers of all languages represent exactly.


def digest(value: Any) -> str:
    """Compute the SHA-256 of a JSON value, in hexadecimal."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def checksum(values: dict[str, Any]) -> str:
    """Compute the SHA-256 of the values of a file. The key of the checksum itself is left out."""
    return digest({name: value for name, value in values.items() if name != SEAL})


def write_sealed_json(path: Path, version: int, values: dict[str, Any], indent: int | None = 2) -> None:
    """Write a JSON file with a format version and a checksum atomically."""
    values = {FORMAT: version, **values}
    values.pop(SEAL, None)
    write_json(path, {**values, SEAL: checksum(values)}, indent)


def rename_keys(values: Mapping[str, Any], former_keys: Mapping[str, str]) -> dict[str, Any]:
    """Return values under today's keys. ``former_keys`` maps the keys of earlier versions to today's keys."""
    return {former_keys.get(key, key): value for key, value in values.items()}


def read_record(
    path: Path,
    version: int,
    remedy: str,
    kind: Any = None,
    *,
    follow: bool = False,
    former_versions: Collection[int] = (),
    former_keys: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Read a JSON file of this package, and check it.

    Args:
        version: format version that this version of the package writes.
        remedy: instruction to the user if the file is damaged or has another version.
        kind: types of the values; see ``validate``. ``None``: the file is sealed.
        follow: accept a symbolic link.
        former_versions: older format versions that are also read.
        former_keys: today's keys by the keys of the older versions.

    Raises:
        UserError: the file cannot be read, has another version, was altered, or has values of other types.
    """
    try:
        values: dict[str, Any] = read_json(path, follow=follow)
        if values[FORMAT] not in (version, *former_versions):
            found = str(values[FORMAT])[:40]
            raise UserError(f"{path} has format {found}; this version reads format {version}", remedy=remedy)
        # The seal covers the keys as they were written, and the kinds describe today's keys.
        if kind is None and values[SEAL] != checksum(values):
            raise ValueError("it was altered since it was written: its SHA-256 is not the one in its last line")
        values = rename_keys(values, former_keys or {})
        if kind is not None:
            validate(values, kind)
        return values
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise damaged_error(path, error, remedy) from error


def damaged_error(path: object, error: Exception, remedy: str) -> UserError:
    """Return the error for a file or folder of this package whose content is wrong."""
    why = f"{error.args[0]} is missing" if isinstance(error, KeyError) else str(error)
    return UserError(f"{path} is damaged", why[:300], remedy)


def validate(value: Any, kind: Any, name: str = "the file") -> None:
    """Check the type of a value from JSON.

    Args:
        kind: expected type: ``bool``, ``int``, ``float``, ``str``, ``list[kind]`` or ``dict[str, kind]``. A tuple of
            texts: the value is one of them. A dictionary: the value is an object with these keys, and the dictionary
            gives the types of their values. A key that ends in a question mark is optional.
        name: name of the value, for the message.

    Raises:
        KeyError: a key is missing.
        ValueError: the value has another type, or is a number that is not finite or larger than 2^53.
    """
    origin, inner = get_origin(kind) or kind, get_args(kind)
    if isinstance(kind, dict) and type(value) is dict:
        for key, item_kind in kind.items():
            if not key.endswith("?"):
                validate(value[key], item_kind, key)
            elif key[:-1] in value:
                validate(value[key[:-1]], item_kind, key[:-1])
    elif kind is float:
        parse_finite(value, name=name)
    elif kind is int:
        parse_integer(value, -MAX_INTEGER, MAX_INTEGER, name)
    elif isinstance(kind, tuple):
        if value not in kind:
            raise ValueError(f"{name} is {str(value)[:40]!r}, not {' or '.join(kind)}")
    elif isinstance(kind, dict) or type(value) is not origin:
        raise ValueError(f"{name} is {str(value)[:40]!r}, not {getattr(kind, '__name__', 'an object')}")
    elif inner:
        for item in value.values() if origin is dict else value:
            validate(item, inner[-1], f"a value of {name}")
