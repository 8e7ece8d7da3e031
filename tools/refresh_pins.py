#!/usr/bin/env python3
"""Rewrite the pins in pyproject.toml from a fresh resolution (all groups and extras).

    uv run --no-sync tools/refresh_pins.py

A lock file would serve the same purpose, but records the address of the package index. Pins are
plain names and versions that both uv and pip accept.
"""

import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PYPROJECT = ROOT / "pyproject.toml"
BLOCK = re.compile(r"(?<=    # pins: begin\n).*?(?=    # pins: end\n)", re.DOTALL)

# Conditions of `environments` in pyproject.toml, which uv adds to the markers.
ALWAYS = {
    "python_full_version < '3.15'",
    "platform_machine == 'x86_64'",
    "sys_platform == 'linux'",
    "platform_python_implementation == 'CPython'",
}


def uv(*arguments: str) -> str:
    return subprocess.run(("uv", *arguments), cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout


def with_pins(text: str, pins: list[str]) -> str:
    if len(BLOCK.findall(text)) != 1:
        raise SystemExit("pyproject.toml must have the lines '# pins: begin' and '# pins: end' exactly once")
    lines = "".join(f'    "{pin}",\n' for pin in pins)
    return BLOCK.sub(lambda _: lines, text)


def pin(requirement: str) -> str:
    """Remove the conditions that always hold from a line `name==version ; marker` of uv's export."""
    name, _, marker = requirement.partition(" ; ")
    if " or " not in marker:
        marker = " and ".join(part for part in marker.split(" and ") if part not in ALWAYS)
    return f"{name} ; {marker}" if marker else name


def exported(*groups: str) -> list[str]:
    """Return the pins of dependency groups and extras from the lock file."""
    form = ("--no-emit-project", "--no-emit-local", "--no-hashes", "--no-annotate", "--no-header")
    return [pin(line) for line in uv("export", "--frozen", *groups, *form).splitlines()]


def main() -> None:
    before = PYPROJECT.read_text()
    try:
        PYPROJECT.write_text(with_pins(before, []))
        uv("lock", "--upgrade")
        # Two exports, because MXNet's flavours conflict. Common dependencies such as numpy are equal in both.
        on_cpu = exported("--all-extras", "--all-groups", "--no-group", "cu112", "--no-group", "horovod-cu112")
        on_gpu = exported("--group", "cu112")
        pins = sorted(dict.fromkeys([*on_cpu, *on_gpu]), key=lambda line: line.partition("==")[0])
        PYPROJECT.write_text(with_pins(before, pins))
        uv("lock")  # check that the pins resolve
    except BaseException:
        PYPROJECT.write_text(before)
        raise


if __name__ == "__main__":
    main()
