"""Start of the console command `crepe`, which `python -m crepe_dist` is, too."""

import sys

from crepe_dist import command_runner

STOPPABLE = ("train", "supervise")  # commands with an exit code of their own for being stopped


def start() -> None:
    """Start the command that the command line names; the entry point of the package."""
    if sys.argv[1:2] and sys.argv[1] in STOPPABLE:
        command_runner.end_on_signals()
    # Not at the top: signals must be handled before these imports.
    from crepe_dist import cli

    command_runner.run(cli.run)


if __name__ == "__main__":
    start()
