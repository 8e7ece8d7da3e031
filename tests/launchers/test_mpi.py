"""launch/mpirun.sh: same weights under Open MPI as under the supervisor, and saves on request to stop."""

import re
import signal
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from crepe_dist.errors import ExitCode
from tests.chaos import harness
from tests.conftest import needs_kernels
from tests.helpers.needs import needs
from tests.launchers.conftest import flags

ROOT = Path(__file__).parents[2]

# Package mpi4py with MPICH's library, which would end the process if it were initialised under Open MPI.
OTHER_MPI = """
class rc: ...
class MPI:
    get_vendor = staticmethod(lambda: ("MPICH", (5, 0, 2)))
    Is_initialized = staticmethod(lambda: False)
"""

others = ["an environment without mpi4py, whose MPI may be another"] if find_spec("mpi4py") else []
pytestmark = [pytest.mark.mpi, needs("mpirun", others=others)]


def mpirun(folder: Path, arguments: list[str], pace: float = 0) -> subprocess.Popen[str]:
    """Return the script with the edits of a user. The number of threads is that of ``unbroken``."""
    fault = {"kind": "", "rank": 0, "phase": "", "step": 0, "once": str(folder / "none"), "pace": pace}
    env = {**harness.environment(fault), "OMP_NUM_THREADS": "1"}
    # Tests may run as root, which Open MPI refuses by default, and on fewer cores than processes.
    env.update(OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1")
    env["PRTE_MCA_rmaps_default_mapping_policy"] = "slot:oversubscribe"
    text = (ROOT / "launch" / "mpirun.sh").read_text()
    text, edits = re.subn(r"^python=.*$", f"python={sys.executable}", text, flags=re.MULTILINE)
    assert edits == 1
    assert text.count("-m crepe_dist.train") == 1
    script = folder / "mpirun.sh"
    script.write_text(text.replace("-m crepe_dist.train", "-m tests.chaos.worker"))
    script.chmod(0o755)
    return subprocess.Popen(
        [script, *arguments], cwd=folder, env=env, stdin=-3, stdout=-1, stderr=subprocess.STDOUT, text=True
    )


@needs_kernels
@pytest.mark.parametrize("mpi4py", ["none", "of another MPI"])
def test_two_processes_compute_what_two_of_the_supervisor_do(mpi4py, data, tmp_path, unbroken, monkeypatch):
    if mpi4py != "none":
        (tmp_path / "mpi4py").mkdir()
        (tmp_path / "mpi4py" / "__init__.py").write_text(OTHER_MPI)
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("TERM", "xterm")  # Open MPI connects rank 0 to a pseudo-terminal.
    run_dir = tmp_path / "a run"
    code, printed = harness.finish(mpirun(tmp_path, flags(run_dir, data)))
    assert code == 0, printed
    assert "2 processes on 1 host" in printed
    assert ("mpi4py uses MPICH, but Open MPI started the processes" in printed) == (mpi4py != "none")
    assert "\x1b" not in printed
    harness.assert_same(run_dir, unbroken)


@pytest.mark.slow
def test_asked_to_stop_all_save(data, tmp_path):
    """Without the script, mpirun would kill the processes a second later."""
    run_dir = tmp_path / "run"
    process = mpirun(tmp_path, flags(run_dir, data), pace=1.5)
    harness.wait_for(lambda: process.poll() is not None or (run_dir.exists() and harness.has_saved(run_dir)))
    process.send_signal(signal.SIGTERM)
    code, printed = harness.finish(process)
    assert code == ExitCode.STOPPED, printed
    assert "SIGUSR2: saved after step" in printed
    assert harness.saved_step(run_dir) == harness.steps(run_dir)[-1][0]
