#!/usr/bin/env python3
"""Write docs/reference: the options of train, the --help of every command, and the docstrings of the Python API.

uv run tools/reference.py            write the pages
uv run tools/reference.py --check    fail if a page is out of date
"""

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
# Parts of a type that the table of the options leaves out: limits that only catch typos, and words that the
# reader knows already.
NO_LIMIT = re.compile(r",? (?:at most|to) 1,000,000,000|^an? (?:integer|number) |^one of |^a path in UTF-8$")
# Parts of the help that the page of the commands leaves out: the usage line, which repeats the options; the examples,
# which the guides have; and flags that more than one command has, which SHARED describes one time.
ELSEWHERE = re.compile(
    r"\Ausage: (?:.+\n)+\n|^examples:\n(?:.+\n)+\n?"
    r"|^  (?:-h, --help|--version|CHECKPOINT|--min-probability|--min-precision|--device"
    r"|--encoding|--seed|--text-column|--label COLUMN|--label-columns)(?=[\s,]|$).*\n"
    r"(?:    +.*\n)*",
    re.MULTILINE,
)
# Limits of a number at the end of a description. They are left out to keep the page short.
LIMITS = re.compile(r" An? (?:integer|number) (?:from|above) \S+(?: to below|, at most| to) [\d.,]*\d(?:, or \w+)?\.")
# Heading of a group whose options were all left out.
EMPTY = re.compile(r"^(?:options|positional arguments):\n\n*(?=\S|\Z)", re.MULTILINE)
SHARED = """
`evaluate`, `predict`, `serve` and `export` have an argument `CHECKPOINT`: a .params file, a run folder or the
start of its name, an exported folder or its URL. The default is the newest finished run in `runs/`. `predict`, `serve`
and `export` also have `--min-probability` and `--min-precision`. If one of them is given, the model predicts no class
for [texts of low probability](../how-to/probabilities.md#answer-only-what-is-probable-enough).

Each command is also a module: `python -m crepe_dist.prepare` is the same as `crepe prepare`.

More than one command has these flags:

| flag | meaning |
|---|---|
| `--device` | Device: auto, gpu or cpu. |
| `--encoding` | Encoding of text files, such as cp1252. Default: the encoding of the model's data, otherwise UTF-8. |
| `--seed` | Random seed. |
| `--label`, `--label-columns`, `--text-column` | Columns as in `prepare`. Default: those of the model's data. |"""

# Sections of the page of the API: title, module, and the names of the module.
API = (
    ("Train", "crepe_dist.api", ("fit",)),
    ("Prepare", "crepe_dist.commands.prepare", ("prepare",)),
    ("Use", "crepe_dist.predicting.loading", ("load", "Predictor")),
    ("Predictions", "crepe_dist.predicting.predictor", ("Prediction", "Explanation")),
    ("As an estimator", "crepe_dist.estimator.classifier", ("CrepeClassifier",)),
    ("On a cluster", "crepe_dist", ("on_ray", "Result")),
)
INTERNAL = (
    *(
        "to",
        "logits",
        "write_metadata",
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
        "Options of `train` and `supervise`: flags, and keys of a YAML file (`--config`). Flags override the file.",
        "`--on`, `--processes` and `--max-restarts` train on a [cluster](../how-to/clusters.md).",
        "",
        "The data folder needs no flag: `crepe train data/reviews`.",
    ]
    for kind in (config.Config, *config.GROUPS.values()):
        lines += ["", f"## {kind.group_name or 'General'}", "", kind.__doc__ or "", ""]
        lines += ["| flag and key | type | default | |", "|---|---|---|---|"]
        for option in settings_of(kind):
            default = option.default if isinstance(option.default, str) else json.dumps(option.default)
            name = qualified_name(kind, option)
            cells = [
                f"`{config.flag(name)}`<br>`{name}`",
                NO_LIMIT.sub("", str(kind_of(option))),
                f"`{default}`",
                option.metadata["help"],
            ]
            lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def api() -> str:
    lines = [
        "# Python API",
        "",
        "Public functions and classes of `crepe_dist`. [Train from Python](../how-to/python.md) has examples.",
    ]
    for title, home, names in API:
        lines += ["", f"## {title}"]
        for name in names:
            lines += describe(name, getattr(importlib.import_module(home), name))
    return "\n".join(lines) + "\n"


def describe(name: str, value: Any, level: str = "###") -> list[str]:
    """Describe a function, or a class with its public methods and properties, in Markdown."""
    doc, lines = parse(inspect.getdoc(value) or ""), ["", f"{level} {name}"]
    if inspect.isfunction(value) or ("__init__" in value.__dict__ and not dataclasses.is_dataclass(value)):
        lines += ["", "```python", signature(name, value), "```"]
    lines += ["", plain(doc.short_description), *["", plain(doc.long_description)] * bool(doc.long_description)]
    for kind, title in (("param", "Arguments"), ("attribute", "Attributes")):
        params = [param for param in doc.params if param.args[0] == kind and param.arg_name not in INTERNAL]
        rows = [f"- `{param.arg_name}`: {plain(param.description)}" for param in params]
        lines += ["", f"**{title}**", "", *rows] * bool(rows)
    members = {key: member for key, member in vars(value).items() if key[0] != "_" and key not in INTERNAL}
    lines += [
        f"- `{key}`: {plain(inspect.getdoc(member))}"
        for key, member in members.items()
        if isinstance(member, property) and inspect.isfunction(member.fget) and member.__doc__
    ]
    if doc.returns:
        lines += ["", f"Returns: {plain(doc.returns.description)}"]
    lines += [""] * bool(doc.raises) + [
        f"Raises `{error.type_name}`: {plain(error.description)}" for error in doc.raises
    ]
    for key, member in members.items():
        lines += describe(f"{name}.{key}", member, "####") if inspect.isfunction(member) else []
    return lines


def signature(name: str, function: Any) -> str:
    """Format the signature of a function on one line. If the line is too long, put each argument on its own line."""
    arguments: list[str] = []
    star = False
    for key, parameter in inspect.signature(function).parameters.items():
        if parameter.kind is parameter.KEYWORD_ONLY and not star:
            arguments, star = [*arguments, "*"], True
        if key != "self":
            prefix = "**" if parameter.kind is parameter.VAR_KEYWORD else ""
            default = f"={parameter.default!r}" if parameter.default is not parameter.empty else ""
            arguments.append(f"{prefix}{key}{default}")
    line = f"{name}({', '.join(arguments)})"
    return (
        line if len(line) <= int(HELP_WIDTH) else f"{name}(\n" + "".join(f"    {word},\n" for word in arguments) + ")"
    )


def plain(text: str | None) -> str:
    """Convert a docstring to Markdown. Each paragraph becomes one line, and examples are left out."""
    paragraphs = (text or "").replace("``", "`").split(BLANK)
    return BLANK.join(" ".join(paragraph.split()) for paragraph in paragraphs if not paragraph.startswith(">>>"))


def helps() -> str:
    introduction = (
        "The options of each command. `--help` prints them with examples. The page [Options](options.md) lists the "
        "options of `train`, and the page [Preparing data](../data.md) lists the options of `prepare`."
    )
    lines = ["# Commands", "", introduction, SHARED]
    os.environ["COLUMNS"], sys.argv[0] = HELP_WIDTH, "crepe"
    os.environ.pop("UV", None)
    for name in ("", *cli.COMMANDS):
        parser = cli.build_parser(name) if name else cli.parser()
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
