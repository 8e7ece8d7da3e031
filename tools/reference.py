#!/usr/bin/env python3
"""Write docs/reference: every option out of the dataclasses, and every command's --help.

uv run tools/reference.py            writes
uv run tools/reference.py --check    fails if a page is not what would be written
"""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import typing
from pathlib import Path
from typing import Any

from docstring_parser import parse

from crepe_dist.settings import config

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "docs" / "reference"
HELP_WIDTH = "100"


def options() -> str:
    lines = [
        "# Options of train",
        "",
        "Flags (`--model.size tiny`) and the keys of a YAML file (`--config`) are the same; flags win. `supervise`",
        "takes them as well. In a file, `run-dir` is `run_dir`.",
    ]
    for name, kind in {"": config.Config, **config.GROUPS}.items():
        about = parse(kind.__doc__ or "")
        lines += [
            "",
            f"## {name or 'General'}",
            "",
            about.description or "",
            "",
            "| option | type | default | |",
            "|---|---|---|---|",
        ]
        texts = {each.arg_name: " ".join((each.description or "").split()) for each in about.params}
        hints = typing.get_type_hints(kind)
        for field in dataclasses.fields(kind):
            if field.name not in config.GROUPS:
                flag = f"{name}.{field.name}" if name else field.name.replace("_", "-")
                cells = [
                    f"`{flag}`",
                    shown(hints[field.name]),
                    f"`{default(field)}`",
                    texts[field.name].replace("``", "`"),
                ]
                lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def shown(hint: Any) -> str:
    """A type as a person would say it."""
    parts = typing.get_args(hint)
    if typing.get_origin(hint) is typing.Union:
        return " or ".join(shown(part) for part in parts)
    if typing.get_origin(hint) is typing.Literal:
        return ", ".join(map(str, parts))
    if parts:
        kind = typing.get_origin(hint).__name__
        return f"list of {shown(parts[0])}" if kind == "list" else f"{kind} of names and {shown(parts[-1])}"
    return {"NoneType": "none", "str": "text", "int": "whole number", "float": "number", "bool": "true, false"}[
        hint.__name__
    ]


def default(field: dataclasses.Field[Any]) -> str:
    made = field.default_factory
    value = field.default if made is dataclasses.MISSING else made()
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def commands() -> list[str]:
    """The modules that can be run: those that end in ``command.run``."""
    found = (ROOT / "crepe_dist").glob("*.py")
    return sorted(path.stem for path in found if 'if __name__ == "__main__":' in path.read_text(encoding="utf-8"))


def helps() -> str:
    lines = ["# Commands", "", "What each says to `--help`."]
    for name in commands():
        done = subprocess.run(
            [sys.executable, "-m", f"crepe_dist.{name}", "--help"],
            check=True,
            capture_output=True,
            text=True,
            cwd=ROOT,
            env={**os.environ, "COLUMNS": HELP_WIDTH},
        )
        lines += ["", f"## {name}", "", "```text", done.stdout.rstrip(), "```"]
    return "\n".join(lines) + "\n"


def main() -> None:
    stale = []
    for name, text in (("options.md", options()), ("commands.md", helps())):
        path = FOLDER / name
        if path.is_file() and path.read_text(encoding="utf-8") == text:
            continue
        stale.append(str(path.relative_to(ROOT)))
        if "--check" not in sys.argv[1:]:
            path.write_text(text, encoding="utf-8")
    if stale and "--check" in sys.argv[1:]:
        raise SystemExit(f"not up to date: {', '.join(stale)}; run tools/reference.py")


if __name__ == "__main__":
    main()
