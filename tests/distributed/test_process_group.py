"""Collectives and errors in several processes, under the real launchers."""

import importlib.util
import os
import shlex
import subprocess
import sys
import time

import pytest

from crepe_dist.distributed.launch import LauncherEnv, read_launcher_env, require_complete_rank_env
from crepe_dist.errors import UserError
from tests.conftest import QUICK, command, launch_prefix, run
from tests.helpers.needs import needs
from tests.helpers.programs import program, supervised

needs_mpi = needs("mpiexec", others=[] if importlib.util.find_spec("mpi4py") else ["mpi4py"])
SHUT_DOWN = "Horovod has been shut down"


def shell(processes: int, line: str) -> list[str]:
    return [*launch_prefix(processes), "sh", "-c", line]


def python_train(*arguments: object) -> str:
    return shlex.join([sys.executable, "-m", "crepe_dist.train", *map(str, arguments)])


@pytest.mark.parametrize("launcher", ["horovodrun", "supervise", pytest.param("mpiexec", marks=needs_mpi)])
def test_collectives_and_steps_on_rank_0(tmp_path, launcher):
    worker = "distributed/collectives_worker.py"
    arguments = {
        "horovodrun": program(worker, processes=3),
        "supervise": supervised(worker, processes=3),
        "mpiexec": ["mpiexec", "-n", "3", *program(worker)],
    }[launcher]
    printed = run(arguments, tmp_path)
    assert printed.count("all well on") == 3
    assert SHUT_DOWN not in printed


class TestErrors:
    """Each error is printed once, names a remedy, and ends every process."""

    def check(self, arguments, cwd, message, seconds=60):
        start = time.monotonic()
        printed = run(arguments, cwd, code=None)
        assert time.monotonic() - start < seconds
        assert printed.count(message) == 1, printed
        assert "do:  " in printed
        assert "Error in sys.excepthook" not in printed
        return printed

    def test_ranks_that_disagree_on_the_settings(self, data, tmp_path):
        line = python_train("--data", data, *QUICK) + " --seed=$HOROVOD_RANK"
        printed = self.check(shell(2, line), tmp_path, "the processes disagree on the settings")
        assert "training: seed = 0" in printed

    def test_a_data_folder_that_one_rank_does_not_see(self, data, tmp_path):
        for rank in (0, 1):
            (tmp_path / str(rank)).mkdir()
        (tmp_path / "0" / "data").symlink_to(data)
        line = "cd $HOROVOD_RANK && " + python_train("--data", "data", "--run-dir", tmp_path / "run", *QUICK)
        printed = self.check(shell(2, line), tmp_path, "data is not a prepared data set [only on rank 1")
        assert not (tmp_path / "run").exists(), printed

    def test_processes_of_a_launcher_that_cannot_meet(self, data, tmp_path):
        """Processes that mpirun or srun starts fail if they cannot meet. They never train N independent runs."""
        processes = []
        for rank in range(2):
            env = dict(os.environ, OMPI_COMM_WORLD_RANK=str(rank), OMPI_COMM_WORLD_SIZE="2")
            arguments = command("train", "--data", data, *QUICK)
            processes.append(subprocess.Popen(arguments, cwd=tmp_path, env=env, stdout=-1, stderr=subprocess.STDOUT))
        printed = b"".join(process.communicate(timeout=200)[0] for process in processes).decode()
        assert all(process.returncode for process in processes)
        assert (
            printed.count("Open MPI started 2 processes, ") == 1
        )  # MASTER_ADDR is not set, or mpi4py sees one process.
        assert not (tmp_path / "runs").exists()


class TestLaunch:
    @pytest.mark.parametrize(
        ("environment", "expected"),
        [
            ({}, LauncherEnv()),
            (
                {"HOROVOD_RANK": "3", "HOROVOD_SIZE": "8", "HOROVOD_LOCAL_RANK": "1", "HOROVOD_LOCAL_SIZE": "2"},
                LauncherEnv("horovodrun", 3, 8, 2),
            ),
            ({"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2"}, LauncherEnv("Open MPI", 1, 2, 1)),
            ({"RANK": "3", "WORLD_SIZE": "4", "PMI_RANK": "0", "PMI_SIZE": "2"}, LauncherEnv("torchrun", 3, 4)),
            ({"JOB_COMPLETION_INDEX": "1"}, LauncherEnv()),  # The number of processes is unknown.
            (
                {"SLURM_PROCID": "5", "SLURM_STEP_NUM_TASKS": "6", "SLURM_STEP_TASKS_PER_NODE": "2(x3)"},
                LauncherEnv("srun", 5, 6, 1),
            ),
            ({"SLURM_PROCID": "0", "SLURM_NTASKS": "8"}, LauncherEnv()),  # The batch script.
        ],
    )
    def test_the_environment_is_read(self, environment, expected):
        assert read_launcher_env(environment) == expected

    @pytest.mark.parametrize(("rank", "size"), [("", "2"), ("x", "2"), ("0", "two"), ("1", "")])
    def test_a_process_with_only_a_part_of_a_rank_environment_is_refused(self, rank, size):
        environment = {"RANK": rank, "WORLD_SIZE": size}
        with pytest.raises(UserError, match=f"WORLD_SIZE is {size or 'not set'}, and RANK is {rank or 'not set'}"):
            require_complete_rank_env(read_launcher_env(environment), environment)
        for complete in ({"WORLD_SIZE": "1"}, {"SLURM_PROCID": "0", "SLURM_NTASKS": "8"}, {"RANK": "0"}):
            require_complete_rank_env(read_launcher_env(complete), complete)
