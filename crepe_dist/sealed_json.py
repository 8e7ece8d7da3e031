"""JSON files of this package. They contain a format version, and are checked when they are read.

The last value of a sealed file is the SHA-256 of its other values, which reveals changes and damage. Files that other
programs may write have no checksum. Instead, the types of their values are checked.
"""

import hashlib
import json
from pathlib import Path
from typing import Any, get_args, get_origin

from crepe_dist.errors import UserError
from crepe_dist.files.json_file import parse_finite, parse_integer, read_json, write_json

FORMAT, SEAL = "format", "sha256"  # First and last key of a sealed file.
MAX_INTEGER = 1 << 53  # Largest integer that JSON readers in all languages represent exactly.


def digest(value: Any) -> str:
    """Compute the SHA-256 of a JSON value, in hexadecimal."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def checksum(values: dict[str, Any]) -> str:
    """Compute the SHA-256 of the values of a file, without the checksum itself."""
    return digest({name: value for name, value in values.items() if name != SEAL})


def write_sealed_json(path: Path, version: int, values: dict[str, Any], indent: int | None = 2) -> None:
    """Write a JSON file with a format version and a checksum atomically."""
    values = {FORMAT: version, **values}
    values.pop(SEAL, None)
    write_json(path, {**values, SEAL: checksum(values)}, indent)


def read_record(
    path: Path,
    version: int,
    remedy: str,
    kind: Any = None,
    *,
    follow: bool = False,
) -> dict[str, Any]:
    """Read a JSON file of this package, and check it.

    Args:
        version: Format version that this version of the package writes.
        remedy: Instruction to the user if the file is damaged or has another version.
        kind: Types of the values (see ``validate``). If it is ``None``, the file is sealed.
        follow: Whether the file may be a symbolic link.

    Raises:
        UserError: The file cannot be read, has another version, was altered, or has a value of the wrong type.
    """
    try:
        values: dict[str, Any] = read_json(path, follow=follow)
        if values[FORMAT] != version:
            found = str(values[FORMAT])[:40]
            raise UserError(f"{path} has format {found}; this version reads format {version}", remedy=remedy)
        if kind is not None:
            validate(values, kind)
        elif values[SEAL] != checksum(values):
            raise ValueError("it was altered since it was written: its SHA-256 is not the one in its last line")
        return values
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise damaged_error(path, error, remedy) from error


def damaged_error(path: object, error: Exception, remedy: str) -> UserError:
    """Return the error for a damaged file or folder of this package."""
    why = f"{error.args[0]} is missing" if isinstance(error, KeyError) else str(error)
    return UserError(f"{path} is damaged", why[:300], remedy)


def validate(value: Any, kind: Any, name: str = "the file") -> None:
    """Check the type of a value from JSON.

    Args:
        kind: Expected type: ``bool``, ``int``, ``float``, ``str``, ``list[kind]`` or ``dict[str, kind]``. A tuple of
            strings: the value must be one of them. A dictionary: the value must be an object with these keys, and the
            dictionary contains the type of each value. A key that ends in a question mark is optional.
        name: Name of the value, for the message.

    Raises:
        KeyError: A key is missing.
        ValueError: The value has another type, or is a number that is not finite, or an integer beyond 2^53.
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
