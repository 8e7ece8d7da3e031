"""Tests that a request to stop loses no steps, and that its exit code means that the same command resumes."""

import signal
import subprocess
import time

import pytest

from crepe_dist.errors import ExitCode
from tests.chaos import harness
from tests.chaos.harness import slow
from tests.conftest import needs_kernels


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "phase", "step"), [(1, "save", 8), (2, "evaluate", 26)])
def test_a_signal_to_one_process_stops_all_with_nothing_lost(trial, processes, phase, step):
    code, printed = trial.run(processes, fault=trial.fault("SIGTERM", step, processes - 1, phase))
    if processes == 1:
        assert code == ExitCode.STOPPED, printed
        assert "SIGTERM: saved after step" in printed
    else:  # horovodrun has exit codes of its own
        assert "exit with status code 75" in printed
        assert "another process was asked to stop: saved after step" in printed
    assert "<stderr>:Traceback" not in printed
    saved = harness.saved_step(trial.run_dir)
    assert saved == harness.steps(trial.run_dir)[-1][0] >= step, "the last step that was done is the one that was saved"
    assert f"resuming from step {saved}," in trial.resume(processes)


@needs_kernels
@pytest.mark.parametrize("number", [signal.SIGTERM, slow(signal.SIGINT)])
def test_a_signal_from_outside(trial, number):
    began = time.monotonic()
    process = harness.start(harness.command(trial.run_dir, trial.data, 1, module="crepe_dist.train"), trial.folder)
    harness.wait_for(lambda: harness.has_saved(trial.run_dir) or process.poll() is not None)
    requested = time.monotonic()
    process.send_signal(number)
    code, printed = harness.finish(process)
    assert time.monotonic() - requested < max(10, requested - began)  # On a busy machine, the start takes long as well.
    assert code == (ExitCode.INTERRUPTED if number == signal.SIGINT else ExitCode.STOPPED), printed
    assert "saved after step" in printed
    assert "Traceback" not in printed
    saved = harness.saved_step(trial.run_dir)
    assert saved == harness.steps(trial.run_dir)[-1][0]
    assert f"resuming from step {saved}," in trial.resume()


@needs_kernels
def test_nobody_reads_the_output_any_more(trial):
    """As in `train | head -1`: training continues without output."""
    arguments = harness.command(trial.run_dir, trial.data, 1, module="crepe_dist.train")
    process = subprocess.Popen(arguments, cwd=trial.folder, env=harness.environment(), stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.wait() == 0
    assert (trial.run_dir / "result.json").is_file()
