"""Reader and writer of JSON files. The reader limits the size and the structure of untrusted files."""

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from crepe_dist.files.atomic_write import write_text
from crepe_dist.files.safe_read import read_bytes

MAX_JSON_BYTES = 1 << 25  # Default size limit in bytes. It suffices for a manifest with 65,536 classes.
# Maximum numbers of containers (lists and objects) and of values. These limits bound the memory: text that consists of
# brackets or commas takes many times its size when it is parsed. Manifests have few brackets.
MAX_JSON_CONTAINERS = 1 << 18
MAX_JSON_VALUES = 1 << 21
MAX_DIGITS = 300  # Maximum number of digits of an integer, so that it can be converted to float64.
MAX_FLOAT = sys.float_info.max


def write_json(path: Path, value: Any, indent: int | None = 2, *, follow: bool = False) -> None:
    """Write a value as JSON atomically; see ``atomic_text``."""
    write_text(path, json.dumps(value, indent=indent, ensure_ascii=False) + "\n", follow=follow)


def read_json(path: Path, limit: int = MAX_JSON_BYTES, *, follow: bool = True) -> Any:
    """Read a JSON file of at most ``limit`` bytes. Parsing uses at most about ``8 * limit`` bytes of memory.

    Raises:
        OSError: See ``open_regular``.
        ValueError: See ``read_bytes``. Also raised if the file is not JSON in UTF-8, is nested too deeply, or has too
            many values, an integer with too many digits, or a duplicate key. Some JSON readers use the first value of a
            duplicate key, and others use the last.
    """
    data = read_bytes(path, limit, follow=follow)
    if data.count(b"[") + data.count(b"{") > MAX_JSON_CONTAINERS or data.count(b",") > MAX_JSON_VALUES:
        raise ValueError(f"{path} holds too many values")
    try:
        return parse_json(data)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def parse_json(data: bytes) -> Any:
    """Parse JSON in UTF-8.

    Raises:
        ValueError: The text is not UTF-8, is not JSON, or exceeds a limit of ``read_json``.
    """
    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=_unique_keys, parse_int=_integer)
        if b"\\u" in data:  # Reject escaped lone surrogates, because they cannot be written to a file.
            json.dumps(value, ensure_ascii=False).encode("utf-8")
        return value
    except UnicodeError:
        raise ValueError("not UTF-8") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error}") from None
    except RecursionError:
        raise ValueError("not JSON: nested too deeply") from None


def parse_finite(value: Any, least: float = -MAX_FLOAT, most: float = MAX_FLOAT, name: str = "a value") -> float:
    """Return a number from JSON as a float, if it is finite and in a range.

    Args:
        name: Name of the value, for the message.

    Raises:
        ValueError: The value is not a number, is out of range, or is NaN or infinity. Python's JSON reader accepts NaN
            and infinity.
    """
    if type(value) not in (int, float) or not least <= value <= most:  # The comparison is false for NaN.
        raise ValueError(f"{name} is {str(value)[:40]!r}, not a finite number{_range(least, most)}")
    return float(value)


def parse_integer(value: Any, least: int = 0, most: int = 1 << 53, name: str = "a value") -> int:
    """Return an integer from JSON, if it is in a range.

    Args:
        name: Name of the value, for the message.

    Raises:
        ValueError: The value is not an integer, or is out of range.
    """
    if type(value) is not int or not least <= value <= most:
        raise ValueError(f"{name} is {str(value)[:40]!r}, not an integer{_range(least, most)}")
    return value


def _range(least: float, most: float) -> str:
    return "" if most == MAX_FLOAT else f" from {least:,} to {most:,}"


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    unique = dict(pairs)
    if len(unique) < len(pairs):
        counts = Counter(key for key, _ in pairs)
        twice = next(key for key, count in counts.items() if count > 1)
        raise ValueError(f"duplicate key {twice[:80]!r}")
    return unique


def _integer(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise ValueError(f"an integer with {len(digits):,} digits")
    return int(digits)
