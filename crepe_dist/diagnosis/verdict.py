"""Verdict of a diagnosis: the last line, which says whether this machine can train."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from crepe_dist.diagnosis.inventory import Facts
from crepe_dist.diagnosis.outcome import Check
from crepe_dist.diagnosis.trial import Trial, judge
from crepe_dist.distributed import horovod_build
from crepe_dist.wording import counted


@dataclass(frozen=True)
class Verdict:
    """Final verdict and its reason."""

    ready: bool
    text: str

    def __str__(self) -> str:
        return f"{'ready' if self.ready else 'not ready'}: {self.text}"


def verdict(facts: Facts, checks: Sequence[Check], trials: Sequence[Trial]) -> Verdict:
    """Derive the verdict.

    Args:
        checks: all checks, including those of the trials.
        trials: the trials; empty with ``--quick``.
    """
    problems = [check for check in checks if check.level == "problem"]
    if problems:
        first = problems[0]
        more = f" (and {counted(len(problems) - 1, 'more problem')}, above)" if problems[1:] else ""
        alone = any(trial.processes == 1 and judge(trial)[0].level == "ok" for trial in trials)
        works = ". One process can train on the CPU" if alone else ""
        return Verdict(False, f"{first.what}{more}. Do: {first.remedy}{works}")
    if not trials:
        return Verdict(True, "all checks passed; no training was tried (--quick)")
    gpus = int(facts["mxnet"]["gpus"])
    devices = "the CPU" + (f" and {counted(gpus, 'GPU')}" if gpus else "")
    if max(trial.processes for trial in trials) > 1:
        return Verdict(True, f"for one process or several, on {devices}")
    how = horovod_build.how_to_install("CUDA" in facts["mxnet"]["features"])
    return Verdict(True, f"for one process, on {devices}. For several, Horovod is missing: {how}")
