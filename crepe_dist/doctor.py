"""Command that checks whether this machine can train."""

import sys
from dataclasses import dataclass

from crepe_dist.diagnosis.checks import NOT_USED, Check, checks, trial
from crepe_dist.distributed import horovod_internals
from crepe_dist.errors import ExitCode, UserError, one_line
from crepe_dist.settings.fields import setting
from crepe_dist.settings.flags import Command
from crepe_dist.wording import counted


@dataclass
class Doctor(Command):
    """Check versions, kernels, GPUs, memory and disks; then train on a few texts.

    That is in one process and, if Horovod is installed, in several. It takes about 20 s and leaves nothing behind.
    """

    usage = """
        crepe doctor

      exit codes: 0 ready; 1 not ready (the last line says what to do)
      """

    quick: bool = setting(False, "only check, without training")

    def run(self) -> None:
        found = []
        for check in checks():
            found.append(check)
            _show(check)
        gpus = sum(check.name.startswith("GPU ") and NOT_USED not in check.shows for check in found)
        trials = [(1, "auto")]
        if has_horovod := horovod_internals.is_installed():
            trials.append((gpus, "gpu") if gpus > 1 else (2, "cpu"))
        for processes, device in trials:
            if not self.quick and all(check.level != "problem" for check in found):
                found.append(_tried(processes, device))
                _show(found[-1])
        if problems := [check for check in found if check.level == "problem"]:
            print(f"not ready: {problems[0].name}: {one_line(problems[0].shows)}. Do: {problems[0].remedy}")
            sys.exit(ExitCode.ERROR)
        where = "the CPU" + f" and {counted(gpus, 'GPU')}" * bool(gpus)
        print(f"ready: for one process{' or several' * has_horovod}, on {where}{' (untried)' * self.quick}")


def _show(check: Check) -> None:
    print(f"{check.level:<8} {check.name:<13} {one_line(check.shows)}", flush=True)
    if check.remedy:
        print(f"{'':<22} do: {one_line(check.remedy)}", flush=True)


def _tried(processes: int, device: str) -> Check:
    name = counted(processes, "process", "processes")
    try:
        return Check(name, f"train: {trial(processes, device)}")
    except UserError as error:
        return Check(name, f"cannot train: {error.what}; {error.why}", "problem", error.remedy or "report this")
