"""The console command `crepe`; `crepe <name>` is the same as `python -m crepe_dist.<name>`."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Mapping
from importlib import import_module
from runpy import run_module
from types import MappingProxyType

from crepe_dist import invocation
from crepe_dist.errors import UserError
from crepe_dist.settings import flags as arguments
from crepe_dist.settings.fields import near

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
            "predict": "classify lines, files, or a text on the command line",
            "serve": "serve the model over HTTP, with a page",
            "export": "export the network: ONNX, a web page, PyTorch, MXNet, or a small model",
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
SHELLS = ("bash", "zsh")
PATH_NAMES = re.compile(r"\b(PATH|FILE|DIR|RUN|SOURCE|CHECKPOINT)\b")  # metavars of values that are paths
# The parser of train is a module of its own, so that help and completion do not import MXNet.
PARSERS = MappingProxyType({"train": "crepe_dist.settings.config", "runs": "crepe_dist.runs.__main__"})


def parser() -> arguments.Parser:
    """Build the parser of the options before the command."""
    prog = invocation.program("").rstrip(" .")
    lines = []
    for title, group in GROUPS.items():
        lines += ["", f"{title}:", *(f"  {name:<12}{summary}" for name, summary in group.items())]
    result = arguments.Parser(
        prog=prog,
        usage=f"{prog} COMMAND [options]",
        description="Train character-level text classifiers, and use them.\n" + "\n".join(lines),
        epilog=f"{invocation.front()}{prog} COMMAND --help lists the options of a command.\n"
        f"{prog} COMMAND is the same as python -m crepe_dist.COMMAND.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    arguments.add_version(result)
    result.add_argument(
        "--print-completion", choices=SHELLS, help="print a script for tab completion of commands and options"
    )
    result.add_argument("command", nargs="?", metavar="COMMAND", help=argparse.SUPPRESS)
    result.add_argument("rest", type=str, nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    return result


def parser_of(name: str) -> arguments.Parser:
    """Build the parser of a command."""
    result: arguments.Parser = import_module(PARSERS.get(name, f"crepe_dist.{name}")).parser()
    return result


def completion(shell: str) -> str:
    """Return the script that completes commands and options in a shell."""
    import shtab  # here: no other command should wait for its import

    whole = argparse.ArgumentParser(prog="crepe")
    arguments.add_version(whole)
    whole.add_argument(
        "--print-completion", choices=SHELLS, help="print a script for tab completion of commands and options"
    )
    commands = whole.add_subparsers()
    for group in GROUPS.values():
        for name, summary in group.items():
            flags = parser_of(name)
            for action in flags._actions:
                if action.nargs != 0 and PATH_NAMES.search(str(action.metavar or action.dest.upper())):
                    action.complete = shtab.FILE  # type: ignore[attr-defined]
            commands.add_parser(name, parents=[flags], add_help=False, help=summary)
    return shtab.complete(whole, shell)


def run() -> None:
    """Run the command that the command line names."""
    flags = parser()
    args = flags.parse_args()
    if args.print_completion:
        print(completion(args.print_completion))
    elif args.command is None:
        flags.print_help()
    elif args.command not in COMMANDS:
        raise UserError(
            f"there is no command {args.command}",
            remedy=near(args.command, COMMANDS) or f"give one of {', '.join(COMMANDS)}",
        )
    else:
        sys.argv[1:] = args.rest
        run_module(f"crepe_dist.{args.command}", run_name="__main__")
