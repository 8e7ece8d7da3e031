"""The commands of the console command `crepe`."""

import argparse
import sys
from collections.abc import Mapping
from importlib import import_module
from types import MappingProxyType
from typing import Any

from crepe_dist import invocation
from crepe_dist.errors import UserError
from crepe_dist.settings.fields import did_you_mean
from crepe_dist.settings.flags import Parser

GROUPS: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {
        "data": {
            "prepare": "encode texts into a folder that training reads",
            "inspect": "find wrong labels and classes that overlap",
        },
        "training": {
            "train": "train a classifier in one or many processes",
            "tune": "search for better settings in a given time",
            "supervise": "train in several processes and restart them after a failure",
            "verify": "train a run again and compare the parameters bit by bit",
            "compare": "show the scores and settings of runs side by side",
            "clean": "free the disk space of finished runs",
        },
        "using": {
            "runs": "list the runs in runs/, and mark the one in use",
            "use": "choose the model of the commands below",
            "evaluate": "score a model on labelled files, or on prepared data",
            "drift": "tell whether new texts are still such as the model was tested on",
            "predict": "classify lines, files, or a text on the command line",
            "serve": "serve the model over HTTP, with a page",
            "export": "export the network: ONNX, a web page, the Hub, MLflow, or a small model",
        },
        "machine": {
            "doctor": "check whether this machine can train",
        },
        "seldom needed": {
            "report": "write the report and model card of a run again",
        },
    }
)
COMMANDS = tuple(name for group in GROUPS.values() for name in group)
MANAGE_COMMANDS = ("runs", "use", "report", "clean")


def parser() -> Parser:
    """Build the parser of the options before the command."""
    prog = invocation.program_name("").rstrip()
    lines = []
    for title, group in GROUPS.items():
        lines += ["", f"{title}:", *(f"  {name:<12}{summary}" for name, summary in group.items())]
    return Parser(
        prog=prog,
        usage=f"{prog} COMMAND [options]",
        description="Train character-level text classifiers, and use them.\n" + "\n".join(lines),
        epilog=f"{invocation.uv_prefix()}{prog} COMMAND --help lists the options of a command.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def command_class(name: str) -> Any:
    """Return the class of a command."""
    home = "train" if name == "supervise" else f"commands.{'manage' if name in MANAGE_COMMANDS else name}"
    return getattr(import_module(f"crepe_dist.{home}"), name.title())


def build_parser(name: str) -> Parser:
    """Build the parser of a command."""
    home = import_module("crepe_dist.settings.config") if name == "train" else command_class(name)  # train imports much
    result: Parser = home.parser()
    return result


def run() -> None:
    """Run the command that the command line names."""
    flags, name = parser(), sys.argv[1] if len(sys.argv) > 1 else ""
    if not name:
        flags.print_help()
    elif name.startswith("-"):
        flags.parse_args()
    elif name not in COMMANDS:
        remedy = did_you_mean(name, COMMANDS) or f"give one of {', '.join(COMMANDS)}"
        raise UserError(f"there is no command {name}", remedy=remedy)
    else:
        del sys.argv[1]
        main(name)


def main(name: str) -> None:
    """Run a command with the flags of the command line."""
    if name == "train":
        import_module("crepe_dist.settings.config").print_help(sys.argv[1:])  # before the module, which imports NumPy
        try:
            import_module("crepe_dist.train").main()
        except KeyboardInterrupt:
            again = "the same command" + " without --fresh" * ("--fresh" in sys.argv)
            message = f"interrupted; {again} resumes from the last saved state, if there is one"
            raise KeyboardInterrupt(message) from None
        return
    kind = command_class(name)
    try:
        kind.parsed().run()
    except KeyboardInterrupt as error:
        raise KeyboardInterrupt(str(error) or kind.interrupted) from None
