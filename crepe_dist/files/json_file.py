"""TODO docstring."""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from crepe_dist.files.atomic_write import write_text
from crepe_dist.files.safe_read import read_bytes

MAX_JSON_BYTES = 1 << 25  # enough for the manifest of 65,536 classes
# Limits on memory: JSON made of brackets or commas takes many times its length once parsed. Manifests have few.
MAX_JSON_CONTAINERS = 1 << 18
MAX_JSON_VALUES = 1 << 21
MAX_DIGITS = 300  # of an integer: float64 holds any of them
MAX_FLOAT = sys.float_info.max


def write_json(path: Path, value: Any, indent: int | None = 2, *, follow: bool = False) -> None:
    """Write a value as JSON, as ``atomic_text`` does."""
    write_text(path, json.dumps(value, indent=indent, ensure_ascii=False) + "\n", follow=follow)


def read_json(path: Path, limit: int = MAX_JSON_BYTES, *, follow: bool = True) -> Any:
    """Read a JSON file of at most ``limit`` bytes. Parsing takes at most about eight times that much memory.

    Raises:
        OSError: See ``open_regular``.
        ValueError: See ``read_bytes``; or the file is not JSON in UTF-8, is nested too deeply, has too many values,
            an integer with too many digits, or a duplicate key (JSON readers disagree on which one counts).
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
        ValueError: The text is not UTF-8, not JSON, or breaks a limit of ``read_json``.
    """
    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=_unique_keys, parse_int=_integer)
        if b"\\u" in data:  # JSON can escape a lone surrogate, which could not be written to any file later
            json.dumps(value, ensure_ascii=False).encode("utf-8")
        return value
    except UnicodeError:
        raise ValueError("not UTF-8") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error}") from None
    except RecursionError:
        raise ValueError("not JSON: nested too deeply") from None


def parse_finite(value: Any, least: float = -MAX_FLOAT, most: float = MAX_FLOAT, name: str = "a value") -> float:
    """Return a number from JSON that is finite and in a range.

    Args:
        name: name of the value, for the message.

    Raises:
        ValueError: The value is none; JSON may hold NaN, infinities and booleans, too.
    """
    if type(value) not in (int, float) or not least <= value <= most:  # false for NaN
        raise ValueError(f"{name} is {str(value)[:40]!r}, not a finite number{_range(least, most)}")
    return float(value)


def integer(value: Any, least: int = 0, most: int = 1 << 53, name: str = "a value") -> int:
    """Return a whole number from JSON that is in a range; see ``finite``.

    Raises:
        ValueError: The value is none.
    """
    if type(value) is not int or not least <= value <= most:
        raise ValueError(f"{name} is {str(value)[:40]!r}, not a whole number{_range(least, most)}")
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
