"""A Slurm cluster of one machine on loopback, in its own folder; needs root, slurm-wlm and munge."""

import contextlib
import os
import secrets
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests.chaos.harness import wait_for

CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=batch_sched_delay=1,sched_interval=2
KillWait=5
ReturnToService=2
{nodes}
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


class Slurm:
    """Slurm with two nodes of one processor each.

    Attributes:
        environment: Environment variables with which Slurm's commands find this installation.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.environment = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf")}

    def __call__(self, *words: object) -> str:
        """Run a command of Slurm."""
        done = subprocess.run(
            [*map(str, words)], env=self.environment, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr + self.logs()
        return done.stdout.strip()

    def job(self, number: str) -> dict[str, str]:
        """Return the controller's record of a job."""
        words = self("scontrol", "show", "job", number).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def logs(self) -> str:
        tails = [f"{path.name}: {path.read_text()[-3000:]}" for path in sorted(self._folder.glob("*.log"))]
        return "\n".join(tails)


@contextlib.contextmanager
def slurm() -> Iterator[Slurm]:
    # A short path, because the name of a socket has at most 108 bytes.
    folder = Path(tempfile.mkdtemp(prefix="crepe-slurm-", dir="/tmp"))
    folder.chmod(0o755)
    daemons: list[subprocess.Popen[bytes]] = []

    def start(*words: str) -> None:
        with (folder / f"{Path(words[0]).name}.out").open("ab") as out:
            daemons.append(subprocess.Popen(words, env=cluster.environment, stdout=out, stderr=out))

    cluster = Slurm(folder)
    try:
        (folder / "state").mkdir()
        (folder / "munge.key").write_bytes(secrets.token_bytes(1024))
        (folder / "munge.key").chmod(0o600)
        with contextlib.ExitStack() as held:
            ports = [held.enter_context(contextlib.closing(socket.create_server(("127.0.0.1", 0)))) for _ in range(3)]
            ports = [port.getsockname()[1] for port in ports]
        host = socket.gethostname().split(".")[0]
        nodes = [
            f"NodeName=n{n} NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[n]} CPUs=1 State=UNKNOWN" for n in (1, 2)
        ]
        (folder / "slurm.conf").write_text(
            CONFIGURATION.format(host=host, ports=ports, folder=folder, nodes="\n".join(nodes))
        )
        start(
            *("munged", "--foreground", "--force", f"--key-file={folder}/munge.key", f"--socket={folder}/munge.socket"),
            *(f"--pid-file={folder}/munged.pid", f"--log-file={folder}/munged.log", f"--seed-file={folder}/munge.seed"),
        )
        wait_for((folder / "munge.socket").exists)
        start("slurmctld", "-D")
        for name in ("n1", "n2"):
            start("slurmd", "-D", "-N", name)
        states = ["sinfo", "--noheader", "--Node", "--format=%T"]

        def ready() -> bool:
            done = subprocess.run(states, env=cluster.environment, capture_output=True, text=True, check=False)
            return done.stdout.split() == ["idle", "idle"]

        try:
            wait_for(ready)
        except AssertionError:
            raise AssertionError(cluster.logs()) from None
        yield cluster
    finally:
        for daemon in reversed(daemons):
            daemon.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                daemon.wait(10)
            daemon.kill()
            daemon.wait()
        shutil.rmtree(folder, ignore_errors=True)
