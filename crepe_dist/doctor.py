"""Command that checks whether this machine can train: ``python -m crepe_dist.doctor``."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from rich.console import Console

from crepe_dist import command
from crepe_dist.diagnosis import checks, inventory, outcome
from crepe_dist.diagnosis.inventory import Facts
from crepe_dist.diagnosis.networks import DEFAULT
from crepe_dist.diagnosis.outcome import Check
from crepe_dist.diagnosis.trial import Trial, judge, trials
from crepe_dist.distributed import horovod_build
from crepe_dist.distributed.launch import detect
from crepe_dist.errors import ExitCode, UserError
from crepe_dist.settings import arguments
from crepe_dist.wording import counted

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
    options = parser().parse_args()
    if detect().size > 1:
        launcher = detect().launcher
        raise UserError(
            f"doctor was started by {launcher}", "it starts its own processes", "start it without a launcher"
        )
    console = Console(quiet=options.json)
    facts = inventory.collect()
    results = checks.checks(facts)
    outcome.show(results, console)
    tried: list[Trial] = []
    for trial in () if options.quick else trials(facts, _say):
        tried.append(trial)
        outcome.show(judge(trial), console)
        results += judge(trial)
    end = verdict(facts, results, tried)
    outcome.explain(results, console)
    console.print()
    outcome.plain(str(end), console, "bold")
    if options.json:
        parts = {"ready": end.ready, "verdict": str(end), "checks": [asdict(check) for check in results]}
        print(json.dumps({**parts, "facts": facts, "trials": [asdict(trial) for trial in tried]}, indent=2))
    sys.exit(ExitCode.DONE if end.ready else ExitCode.ERROR)


@dataclass(frozen=True)
class Verdict:
    """Final verdict and its reason."""

    ready: bool
    text: str

    def __str__(self) -> str:
        return f"{'ready' if self.ready else 'not ready'}: {self.text}"


def verdict(facts: Facts, results: Sequence[Check], trials: Sequence[Trial]) -> Verdict:
    """Derive the verdict.

    Args:
        results: all checks, including those of the trials.
        trials: the trials; empty with ``--quick``.
    """
    problems = [check for check in results if check.level == "problem"]
    if problems:
        first = problems[0]
        more = f" (and {counted(len(problems) - 1, 'more problem')}, above)" if problems[1:] else ""
        alone = any(trial.processes == 1 and judge(trial)[0].level == "ok" for trial in trials)
        works = ". One process can train on the CPU" if alone else ""
        return Verdict(False, f"{first.what}{more}. Do: {first.remedy}{works}")
    if not trials:
        return Verdict(True, "all checks passed; no training was tried (--quick)")
    gpus = sum(bool(each[DEFAULT]["kernels"]) for each in checks.on_gpus(facts))
    devices = "the CPU" + (f" and {counted(gpus, 'GPU')}" if gpus else "")
    if max(trial.processes for trial in trials) > 1:
        return Verdict(True, f"for one process or several, on {devices}")
    how = horovod_build.how_to_install("CUDA" in facts["mxnet"].get("features", []))
    return Verdict(True, f"for one process, on {devices}. For several, Horovod is missing: {how}")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    command.run(main)
