#!/usr/bin/env python3
"""Write docs/reference: the options from their dataclasses, the --help of every command, and the docstrings of the API.

uv run tools/reference.py            write the pages
uv run tools/reference.py --check    fail if a page is out of date
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import json
import os
import re
import sys
from pathlib import Path
from typing import Any

from docstring_parser import parse

from crepe_dist import cli
from crepe_dist.settings import config
from crepe_dist.settings.fields import kind_of, qualified_name, settings_of

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "docs" / "reference"
HELP_WIDTH = "100"
# Limits that only keep numbers and names sane, and kinds and null, which the column of the defaults shows.
NO_LIMIT = re.compile(r",? (?:at most|to) 1,000,000,000| \(or null\)|^a (?:whole )?number |^one of |^a name in UTF-8$")
# Left out: the names of the options, which follow; examples, which the guides have; the options of ``train`` and
# ``prepare``, whose options have pages of their own; and what several commands have, which the page tells once.
ELSEWHERE = re.compile(
    r"\Ausage: (?:.+\n)+\n|^(?:examples|parameters of another program.*):\n(?:.+\n)+\n?"
    r"|^  (?:-h, --help|--version|CHECKPOINT|--min-probability|--min-precision|--mode|--feature-len|--classes|--device"
    r"|--encoding|--header|--seed|--text-column|--label COLUMN|--label-columns)(?=[\s,]|$).*\n"
    r"(?:    +.*\n)*",
    re.MULTILINE,
)
LIMITS = re.compile(r" \(a (?:whole )?number [^;)]*\)|(?<=\()a (?:whole )?number [^;)]*; ")  # which --help has
EMPTY = re.compile(r"^(?:options|positional arguments):\n\n*(?=\S|\Z)", re.MULTILINE)
SHARED = """
`evaluate`, `drift`, `predict`, `serve` and `export` take a `CHECKPOINT`: a .params file, a run folder or the start of
its name, an exported folder or its URL; by default the model that `use` chose, else the newest run in `runs/`, if all
runs there are of the same data. Parameters without a .json file beside them need `--mode` (paper, full, notebook),
`--feature-len` (1014 unless given) and `--classes`: a,b,c in the order of training, or a file with one name per line.
The last three also have `--min-probability` and `--min-precision`, which leave [unsure
texts](../how-to/probabilities.md#answer-only-what-is-probable-enough) unanswered.

A flag that would have no effect is refused. Each command is also a module: `python -m crepe_dist.prepare` is `crepe
prepare`.

Several commands have `--device` (auto, gpu, cpu); `--encoding` of text files, such as cp1252, by default the
encoding of the model's data, else UTF-8; `--header` (auto, yes,
no), whether the first line names the columns; `--seed`. `--label`, `--label-columns` and `--text-column` name
columns as in `prepare`; by default they are those of the model's data."""

# Titles of the page of the API, modules, and their names.
API = (
    ("Train", "crepe_dist.api", ("fit",)),
    ("Prepare", "crepe_dist.commands.prepare", ("prepare",)),
    ("Use", "crepe_dist.predicting.predictor", ("load", "Predictor")),
    ("Predictions", "crepe_dist.predicting.predictor", ("Prediction", "Explanation")),
    ("As an estimator", "crepe_dist.estimator.classifier", ("CrepeClassifier",)),
    ("On a cluster", "crepe_dist", ("FramePredictor", "on_ray", "Result")),
)
INTERNAL = (
    *(
        "to",
        "logits",
        "describe",
        "index",
        "predict_stream",
        "reading",
        "is_multilabel",
        "probability_of",
        "count_known",
    ),
    *("engine", "encoding", "composition", "precision", "thresholds", "calibration"),
)
BLANK = "\n\n"


def options() -> str:
    lines = [
        "# Options of train",
        "",
        "Keys of a YAML file (`--config`), and their flags, which take precedence. `supervise` accepts them as well.",
        "`--on`, `--processes` and `--max-restarts` start the processes on a [cluster](../how-to/clusters.md).",
        "",
        "The data folder may also be given by position: `crepe train data/reviews`. A flag that has no effect, such as",
        "`--width` with `--model ngrams`, is refused. In a file, such a setting is ignored.",
    ]
    for kind in (config.Config, *config.GROUPS.values()):
        lines += ["", f"## {kind.group or 'General'}", "", kind.__doc__ or "", ""]
        lines += ["| flag and key | type | default | |", "|---|---|---|---|"]
        for each in settings_of(kind):
            usual = each.default if isinstance(each.default, str) else json.dumps(each.default)
            name = qualified_name(kind, each)
            cells = [
                f"`{config.flag(name)}`<br>`{name}`",
                NO_LIMIT.sub("", str(kind_of(each))),
                f"`{usual}`",
                each.metadata["help"],
            ]
            lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def api() -> str:
    lines = [
        "# Python API",
        "",
        "The names of `crepe_dist`, and what they return. [Train from Python](../how-to/python.md) has examples.",
    ]
    for title, home, names in API:
        lines += ["", f"## {title}"]
        for name in names:
            lines += described(name, getattr(importlib.import_module(home), name))
    return "\n".join(lines) + "\n"


def described(name: str, found: Any, level: str = "###") -> list[str]:
    """Describe a function, or a class with its public methods and properties, in Markdown."""
    about, lines = parse(inspect.getdoc(found) or ""), ["", f"{level} {name}"]
    if inspect.isfunction(found) or ("__init__" in found.__dict__ and not dataclasses.is_dataclass(found)):
        lines += ["", "```python", signature(name, found), "```"]
    lines += ["", plain(about.short_description), *["", plain(about.long_description)] * bool(about.long_description)]
    for kind, title in (("param", "Arguments"), ("attribute", "Attributes")):
        found_here = [each for each in about.params if each.args[0] == kind and each.arg_name not in INTERNAL]
        rows = [f"- `{each.arg_name}`: {plain(each.description)}" for each in found_here]
        lines += ["", f"**{title}**", "", *rows] * bool(rows)
    own = {each: value for each, value in vars(found).items() if each[0] != "_" and each not in INTERNAL}
    lines += [f"- `{key}`: {plain(inspect.getdoc(value))}" for key, value in own.items() if isinstance(value, property)]
    if about.returns:
        lines += ["", f"Returns: {plain(about.returns.description)}"]
    lines += [""] * bool(about.raises) + [
        f"Raises `{each.type_name}`: {plain(each.description)}" for each in about.raises
    ]
    for key, value in own.items():
        lines += described(f"{name}.{key}", value, "####") if inspect.isfunction(value) else []
    return lines


def signature(name: str, found: Any) -> str:
    """Spell a call with its defaults on one line, or, if it is too long, on a line for each argument."""
    arguments: list[str] = []
    star = False
    for key, each in inspect.signature(found).parameters.items():
        if each.kind is each.KEYWORD_ONLY and not star:
            arguments, star = [*arguments, "*"], True
        if key != "self":
            prefix = "**" if each.kind is each.VAR_KEYWORD else ""
            arguments.append(f"{prefix}{key}" + (f"={each.default!r}" if each.default is not each.empty else ""))
    line = f"{name}({', '.join(arguments)})"
    return (
        line if len(line) <= int(HELP_WIDTH) else f"{name}(\n" + "".join(f"    {each},\n" for each in arguments) + ")"
    )


def plain(text: str | None) -> str:
    """Convert a docstring to Markdown without its examples, a paragraph a line."""
    paragraphs = (text or "").replace("``", "`").split(BLANK)
    return BLANK.join(" ".join(each.split()) for each in paragraphs if not each.startswith(">>>"))


def helps() -> str:
    about = (
        "The options of each command; `--help` prints them with examples. Those of `train` are on the page "
        "[Options](options.md), those of `prepare` on [Preparing data](../data.md). `crepe train` and "
        "`python -m crepe_dist.train` are the same."
    )
    lines = ["# Commands", "", about, SHARED]
    os.environ["COLUMNS"], sys.argv[0] = HELP_WIDTH, "crepe"
    os.environ.pop("UV", None)
    for name in ("", *cli.COMMANDS):
        parser = cli.parser_of(name) if name else cli.parser()
        for action in parser._actions:
            action.help = LIMITS.sub("", action.help or "")
        text = parser.format_help()
        if name in ("train", "prepare"):
            text = re.sub(r"(?ms)^(?:positional arguments|options):\n.*?(?=^examples:)", "", text)
        text = EMPTY.sub("", ELSEWHERE.sub("", text) + "\n").rstrip() if name else text.rstrip()
        lines += ["", f"## crepe {name}".rstrip(), "", "```text", text, "```"]
    return "\n".join(lines) + "\n"


def main() -> None:
    stale = []
    for name, text in (("options.md", options()), ("commands.md", helps()), ("api.md", api())):
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
