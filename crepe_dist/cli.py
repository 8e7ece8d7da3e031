"""List of all commands, and the function that runs the one that the user typed."""

import argparse
import sys
from collections.abc import Mapping
from importlib import import_module
from typing import Any

from crepe_dist import invocation
from crepe_dist.errors import UserError
from crepe_dist.settings.fields import did_you_mean
from crepe_dist.settings.flags import Parser

# Summaries of the commands, in the groups of `crepe --help`.
GROUPS: Mapping[str, Mapping[str, str]] = {
    "data": {
        "prepare": "encode texts into a folder that training reads",
        "inspect": "find wrong labels and overlapping classes",
    },
    "training": {
        "train": "train a classifier with one or many processes",
        "supervise": "train with many processes of this host, and restart them after a failure",
    },
    "using": {
        "runs": "list the runs in runs/",
        "evaluate": "score a model on labelled files, or on prepared data",
        "predict": "classify lines, files, or a text from the command line",
        "serve": "serve a model over HTTP, with a web page",
        "export": "export a model: ONNX, a web page, the Hub, MLflow, or a smaller model",
    },
    "machine": {
        "doctor": "describe this machine for a bug report",
    },
}
COMMANDS = tuple(name for group in GROUPS.values() for name in group)


def parser() -> Parser:
    """Build the parser of `crepe` without a command. The help of this parser lists the commands."""
    prog = invocation.program_name("").rstrip()
    lines = []
    for title, group in GROUPS.items():
        lines += ["", f"{title}:", *(f"  {name:<12}{summary}" for name, summary in group.items())]
    return Parser(
        prog=prog,
        usage=f"{prog} COMMAND [options]",
        description="Train and use character-level text classifiers.\n" + "\n".join(lines),
        epilog=f"{invocation.uv_prefix()}{prog} COMMAND --help lists the options of a command.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def command_class(name: str) -> Any:
    """Return the class of a command."""
    home = "train" if name == "supervise" else f"commands.{name}"
    return getattr(import_module(f"crepe_dist.{home}"), name.title())


def build_parser(name: str) -> Parser:
    """Build the parser of a command."""
    # The import of the module `train` is slow.
    home = import_module("crepe_dist.settings.config") if name == "train" else command_class(name)
    result: Parser = home.parser()
    return result


def run() -> None:
    """Run the command of the command line."""
    flags, name = parser(), sys.argv[1] if len(sys.argv) > 1 else ""
    if not name:
        flags.print_help()
    elif name.startswith("-"):
        flags.parse_intermixed_args()
    elif name not in COMMANDS:
        remedy = did_you_mean(name, COMMANDS) or f"give one of {', '.join(COMMANDS)}"
        raise UserError(f"there is no command {name}", remedy=remedy)
    else:
        del sys.argv[1]
        main(name)


def main(name: str) -> None:
    """Run a command with the flags from the command line."""
    if name == "train":
        # Called before the module `train` is imported, because that import is slow.
        import_module("crepe_dist.settings.config").print_help(sys.argv[1:])
        try:
            import_module("crepe_dist.train").main()
        except KeyboardInterrupt:
            resume = "the same command" + " without --fresh" * ("--fresh" in sys.argv)
            message = f"interrupted; {resume} resumes from the last saved state, if there is one"
            raise KeyboardInterrupt(message) from None
        return
    kind = command_class(name)
    try:
        kind.parsed().run()
    except KeyboardInterrupt as error:
        raise KeyboardInterrupt(str(error) or kind.interrupted) from None
