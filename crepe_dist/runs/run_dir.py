"""Directory of a run: its paths, its lock, and the files that can be removed from it."""

import fcntl
import shutil
import socket
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from crepe_dist.errors import ExitCode, UserError
from crepe_dist.files.atomic_write import remove_temporary, temporary_files
from crepe_dist.files.json_file import read_json
from crepe_dist.runs import checkpoint
from crepe_dist.runs.checkpoint import FOLDER, RUN_KEY_FILE, read_result_file

# A message about a wait is printed after this number of seconds. Processes of an earlier group usually end sooner.
WAIT_MESSAGE_SECONDS = 3.0
REMOVED_PREFIX = ".removed"  # Prefix of the name of a folder while it is deleted.


@dataclass(frozen=True)
class RunDir:
    """The directory of a run.

    Every run has ``config.yaml``, ``run.json``, ``metrics.jsonl``, ``checkpoints/``, ``state/``, ``stacks/`` and
    ``verified/``. A finished run also has ``result.json``. A run with unlabelled texts has
    ``supervised/`` and ``pseudo_labels/``. The directory ``refit/`` exists during a refit.
    """

    path: Path

    @property
    def state(self) -> Path:
        """Directory of the saved states."""
        return self.path / "state"

    @property
    def supervised(self) -> "RunDir":
        """Directory of the supervised model, which is trained before the unlabelled texts are used."""
        return RunDir(self.path / "supervised")

    @property
    def refit(self) -> "RunDir":
        """Directory of the refit (``training/refit.py``)."""
        return RunDir(self.path / "refit")

    @property
    def pseudo_labels(self) -> Path:
        """Directory of the pseudo labels of the unlabelled texts."""
        return self.path / "pseudo_labels"

    def stack_path(self, rank: int) -> Path:
        """Return the path of the file that the watchdog of a rank writes stack traces to."""
        return self.path / "stacks" / f"rank_{rank}.txt"

    def verified_files_path(self) -> Path:
        """Return the file that lists the data files that this host has verified."""
        return self.path / "verified" / f"{socket.gethostname()}.json"

    def read_run_key(self) -> dict[str, Any]:
        """Read ``run.json``: the settings that affect the result (``Config.run_key``), and the fingerprint of the data.

        Raises:
            UserError: The file cannot be read.
        """
        path = self.path / RUN_KEY_FILE
        try:
            values = read_json(path, follow=False)
            if not isinstance(values, dict):
                raise ValueError("it is not a JSON object")
        except (OSError, ValueError) as error:
            remedy = "choose another --run-dir, or start another run with --fresh"
            raise UserError(f"{path} cannot be read", str(error), remedy) from error
        return values

    @property
    def run_key(self) -> dict[str, Any] | None:
        """Content of ``run.json``; ``None`` if it cannot be read."""
        with suppress(UserError):
            return self.read_run_key()
        return None

    @property
    def is_run(self) -> bool:
        """True if ``run.json`` was written by a run. Other programs also write files with this name."""
        return {"model", "optimizer", "training", "data"} <= (self.run_key or {}).keys()

    @property
    def result(self) -> dict[str, Any] | None:
        """Content of ``result.json``; ``None`` if the run is not finished."""
        return read_result_file(self.path)

    @property
    def is_refitted(self) -> bool:
        """True if the run is finished and its n-gram table was refitted."""
        return "refit" in (self.result or {}).get("provenance", {})

    def folders_with_temporary_files(self) -> tuple[Path, ...]:
        """Return the folders where killed processes may have left temporary files."""
        runs = self.path, self.supervised.path, self.refit.path
        return *runs, *(path / FOLDER for path in runs), self.pseudo_labels, self.verified_files_path().parent

    def clean_up(self) -> None:
        """Remove the files and folders that the run no longer needs. Call it while the directory is locked.

        In an unfinished run, these are the leftovers of killed processes. In a finished run, these are also the resume
        state, the folder of a completed refit, and the checkpoints except the reported and the latest checkpoint. If
        the n-gram table was refitted or the supervised model is reported, only the reported checkpoint is kept.
        """
        paths = [path for folder in self.folders_with_temporary_files() for path in temporary_files(folder)]
        paths += [path for path in self.state.glob(".*") if path.is_dir()]
        paths += self.path.glob(f"{REMOVED_PREFIX}-*")
        if (result := self.result) is not None:
            paths += [path for path in (self.state, *[self.refit.path] * self.is_refitted) if path.is_dir()]
            unlabelled = result["provenance"].get("unlabelled", {})
            # The supervised model's checkpoint replaced the student's checkpoint, so later checkpoints are not needed.
            is_final = self.is_refitted or unlabelled.get("reported") == checkpoint.SUPERVISED
            latest = [] if is_final else checkpoint.list_checkpoints(self.path / FOLDER)[:1]
            paths += self.checkpoints_except({Path(result["checkpoint"]).name, *(path.name for path in latest)})
        self.remove(paths)

    def checkpoints_except(self, keep: Collection[str]) -> list[Path]:
        """List the files of the checkpoints that are not needed, the weights files first.

        Args:
            keep: Names of the checkpoints that are needed.
        """
        prefixes = tuple(f"{Path(name).stem}." for name in keep)
        files = (path for path in (self.path / FOLDER).glob("*") if checkpoint.FILE_PATTERN.fullmatch(path.name))
        removable = (path for path in files if not path.name.startswith(prefixes))
        return sorted(removable, key=lambda path: (path.suffix != ".params", path.name))

    def remove(self, paths: Iterable[Path]) -> None:
        """Remove files and folders of the run. Skip files and folders that cannot be removed.

        The resume state is renamed before it is deleted, so that no command finds an incomplete state.
        """
        for path in paths:
            with suppress(OSError):
                if not path.is_dir() or path.is_symlink():
                    path.unlink()
                    continue
                if path == self.state:
                    path = path.rename(self.path / f"{REMOVED_PREFIX}-state")
                shutil.rmtree(path)

    def lock(self) -> IO[str]:
        """Lock the directory for this process. Closing the returned file releases the lock, as does process exit.

        Raises:
            UserError: Another process has locked the directory.
        """
        file = (self.path / ".lock").open("w")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.close()
            raise UserError(
                f"another process is training in {self.path}",
                remedy="wait for it to end, or start another run with --fresh",
            ) from error
        return file

    def lock_in_steps(self, timeout: float, say: Callable[[str], None]) -> Iterator[IO[str] | None]:
        """Try to lock the directory repeatedly. Yield ``None`` after each failed attempt, and finally the lock.

        Args:
            timeout: Number of seconds after which a failed attempt raises ``UserError``. If it is not 0, the exit code
                says that the same command may succeed.
            say: Function that prints a message if the wait takes longer than ``WAIT_MESSAGE_SECONDS``.
        """
        start = time.monotonic()
        due, message_due = start + timeout, start + min(timeout, WAIT_MESSAGE_SECONDS)
        while True:
            try:
                lock = self.lock()
                for folder in self.folders_with_temporary_files():
                    remove_temporary(folder)
                yield lock
                return
            except UserError as error:
                now = time.monotonic()
                if now > due:
                    error.code = ExitCode.FAILURE if timeout else error.code
                    raise
                if now > message_due:
                    message_due = due + 1.0  # The message is printed only one time.
                    say(f"another process is training in {self.path}; waiting up to {timeout:.0f} s for it to end")
            yield None
            time.sleep(0.2)
