#!/usr/bin/env python3
"""Write docs/reference: the options from their dataclasses, and the --help of every command.

uv run tools/reference.py            write the pages
uv run tools/reference.py --check    fail if a page is out of date
"""

from __future__ import annotations

import dataclasses
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from docstring_parser import parse

from crepe_dist import cli
from crepe_dist.settings import config
from crepe_dist.settings.schema import typed, wanted

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "docs" / "reference"
HELP_WIDTH = "100"
# Limits that only keep numbers sane, and kinds and null, which the column of the defaults shows.
NO_LIMIT = re.compile(r",? (?:at most|to) 1,000,000,000| \(or null\)|^a (?:whole )?number |^one of ")
# Left out: the names of the options, which follow; examples, which the guides have; the common options of ``train`` and
# ``prepare``, whose options have pages of their own; and the options that every command has.
ELSEWHERE = re.compile(
    r"\Ausage: (?:.+\n)+\n|^(?:common options|examples):\n(?:.+\n)+\n?|^  (?:-h, --help|--version|--help-all) .*\n",
    re.MULTILINE,
)


def options() -> str:
    lines = [
        "# Options of train",
        "",
        "Flags (`--model.size tiny`) and keys of a YAML file (`--config`) have the same names. Flags take precedence.",
        "`supervise` accepts them as well. In a file, `run-dir` is `run_dir`. The flags `--on`, `--processes` and",
        "`--max-restarts` start the processes on a [cluster](../how-to/clusters.md).",
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
        texts = {param.arg_name: " ".join((param.description or "").split()) for param in about.params}
        hints = typed(kind)
        for field in dataclasses.fields(kind):
            if field.name not in config.GROUPS:
                flag = f"{name}.{field.name}" if name else field.name.replace("_", "-")
                cells = [
                    f"`{flag}`",
                    NO_LIMIT.sub("", wanted(hints[field.name])),
                    f"`{default(field)}`",
                    texts[field.name].replace("``", "`"),
                ]
                lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def default(field: dataclasses.Field[Any]) -> str:
    made = field.default_factory
    value = field.default if made is dataclasses.MISSING else made()
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def helps() -> str:
    about = (
        "The options of each command; `--help` prints them with examples. Those of `train` are on the page "
        "[Options](options.md), those of `prepare` on [Preparing data](../data.md). `crepe train` and "
        "`python -m crepe_dist.train` are the same."
    )
    lines = ["# Commands", "", about]
    for name in ("", *cli.COMMANDS):
        done = subprocess.run(
            [str(Path(sys.executable).with_name("crepe")), *name.split(), "--help"],
            check=True,
            capture_output=True,
            text=True,
            cwd=ROOT,
            env={**{name: value for name, value in os.environ.items() if name != "UV"}, "COLUMNS": HELP_WIDTH},
        )
        text = ELSEWHERE.sub("", done.stdout).rstrip() if name else done.stdout.rstrip()
        lines += ["", f"## crepe {name}".rstrip(), "", "```text", text, "```"]
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
        raise SystemExit(f"out of date: {', '.join(stale)}; run tools/reference.py")


if __name__ == "__main__":
    main()
