"""Random faults in sequence, under the supervisor; the run is bit-identical to an unbroken one."""

import os
import random
import subprocess
from functools import partial

import pytest

from crepe_dist.errors import ExitCode
from crepe_dist.files.json_file import write_json
from crepe_dist.runs import metrics
from tests.chaos import harness

# The fault of the worker that begins each kind.
STRIKES = {"SIGKILL": "SIGKILL", "SIGSTOP": "SIGSTOP", "SIGTERM": "SIGTERM", "cut file": "SIGKILL", "NaN": "nan"}
PACE = 0.03  # seconds before each step, so that the run does not end before the faults do
EPOCHS = 4  # a fault


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize(("processes", "faults"), [(2, 4), (1, 25), (3, 25), (4, 25)])
def test_it_ends_in_the_bits_of_an_unbroken_run(trial, processes, faults):
    generator, plan = random.Random(processes), trial.folder / "plan.json"
    settings = (f"--epochs={EPOCHS * (faults + 1)}", "--safety.watchdog-s=4")
    arguments = harness.supervise(trial.run_dir, trial.data, processes, *settings, flags=("--max-restarts", "1000"))
    environment = {**harness.environment(), "CREPE_DIST_FAULT": str(plan)}
    log = (trial.folder / "log.txt").open("ab")
    started: list[subprocess.Popen[bytes]] = []

    def is_finished() -> bool:
        """Start the command again if a fault has ended it."""
        code = started[-1].poll() if started else ExitCode.STOPPED
        assert code in (None, ExitCode.DONE, ExitCode.ERROR, ExitCode.STOPPED), "no restart is left"
        if code in (ExitCode.ERROR, ExitCode.STOPPED):
            assert len(started) <= 2 * faults, "it ends again and again"
            started.append(subprocess.Popen(arguments, cwd=trial.folder, env=environment, stdout=log, stderr=log))
        return code == ExitCode.DONE

    def last_step() -> int:
        steps = [
            each["step"] for each in metrics.iter_records(trial.run_dir / metrics.METRICS) if each["event"] == "step"
        ]
        return int(steps[-1]) if steps else 0

    def goes_on(struck: int) -> bool:
        return is_finished() or last_step() > struck

    try:
        for _ in range(faults):
            kind = generator.choice(sorted(STRIKES))
            phase = "train" if kind == "NaN" else generator.choice(("train", "evaluate", "save"))
            rank = 0 if phase == "save" else generator.randrange(processes)
            after = last_step() + generator.randint(2, 12)
            write_json(plan, trial.fault(STRIKES[kind], after, rank, phase, pace=PACE))
            harness.wait_for(lambda: is_finished() or trial.has_struck)
            assert trial.has_struck, "it finished before the last fault"
            if kind == "cut file":
                file = generator.choice(sorted(max((trial.run_dir / "state").glob("step_*")).iterdir()))
                os.truncate(file, generator.randrange(file.stat().st_size))
            harness.wait_for(partial(goes_on, last_step()))
            write_json(plan, {"kind": "none", "pace": PACE})
        harness.wait_for(is_finished)
    finally:
        if started and started[-1].poll() is None:
            started[-1].terminate()
            started[-1].wait()
        log.close()
    harness.assert_same(trial.run_dir, trial.unbroken(*settings))
