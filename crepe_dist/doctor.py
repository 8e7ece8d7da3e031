"""Command that checks whether this machine can train: ``python -m crepe_dist.doctor``."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict

from rich.console import Console

from crepe_dist import command
from crepe_dist.diagnosis import checks, inventory, show, trial
from crepe_dist.diagnosis.verdict import verdict
from crepe_dist.distributed.launch import detect
from crepe_dist.errors import ExitCode, UserError
from crepe_dist.settings import arguments

EXAMPLES = """  python -m crepe_dist.doctor
  python -m crepe_dist.doctor --json

exit codes: 0 ready; 1 not ready (the last line says what to do)
"""


def parser() -> arguments.Parser:
    flags = arguments.parser(
        "doctor",
        "Check versions, devices, memory, disks and limits; then let two processes all-reduce numbers and train one "
        "step on each device. This takes about 20 s and leaves nothing behind. The output can be pasted into a bug "
        "report: it contains no names of users, hosts or folders, except in messages of failing programs.",
        EXAMPLES,
    )
    flags.add_argument("--json", action="store_true", help="print everything as one JSON object, and nothing else")
    flags.add_argument("--quick", action="store_true", help="only check, without training")
    return flags


def main() -> None:
    given = parser().parse_args()
    if detect().size > 1:
        launcher = detect().launcher
        raise UserError(
            f"doctor was started by {launcher}", "it starts its own processes", "start it without a launcher"
        )
    console = Console(quiet=given.json)
    found = inventory.collect()
    looked = checks.checks(found)
    show.lines(looked, console)
    tried, results = [], []
    for each in () if given.quick else trial.trials(found, _say):
        tried.append(each)
        results.append(trial.judge(each))
        show.lines(results[-1], console)
    whole = [*looked, *(check for lines in results for check in lines)]
    end = verdict(found, whole, tried)
    show.explanations(whole, console)
    console.print()
    show.plain(str(end), console, "bold")
    if given.json:
        parts = {"ready": end.ready, "verdict": str(end), "checks": [asdict(check) for check in whole]}
        print(json.dumps({**parts, "facts": found, "trials": [asdict(each) for each in tried]}, indent=2))
    sys.exit(ExitCode.DONE if end.ready else ExitCode.ERROR)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    command.run(main)
