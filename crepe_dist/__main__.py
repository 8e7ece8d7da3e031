"""Entry point of the console command `crepe` and of `python -m crepe_dist`."""

import sys

from crepe_dist import command_runner

STOPPABLE = ("train", "supervise")  # Commands that exit with ExitCode.STOPPED when they are asked to stop.


def start() -> None:
    """Run the command that the user typed. The console command `crepe` calls this function."""
    if sys.argv[1:2] and sys.argv[1] in STOPPABLE:
        command_runner.end_on_signals()
    # Imported here because the signal handlers must be installed before this slow import.
    from crepe_dist import cli

    command_runner.run(cli.run)


if __name__ == "__main__":
    start()
