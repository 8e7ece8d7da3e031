"""Copy of a run at a URL, for machines whose disk is lost with them.

The copy is at ``URL/<name of the run folder>``. It contains the files that a resumed run needs, or the files of the
finished run. ``upload.json`` is written last. It lists the files with their sizes and SHA-256, so a copy that was
interrupted is recognised. During training, a copy does not overwrite the files of the previous copy, and removes them
only after its own ``upload.json`` has been written.
"""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import Any

from crepe_dist.errors import ExitCode, UserError
from crepe_dist.files.folders import temporary_folder
from crepe_dist.files.safe_read import fingerprint, manifest_entry
from crepe_dist.preparing import remote
from crepe_dist.runs import mlflow_sync, resume_state, wandb_sync
from crepe_dist.runs.checkpoint import CONFIG, FOLDER, RESULT, RUN_KEY_FILE
from crepe_dist.runs.metrics import METRICS
from crepe_dist.runs.run_dir import PARTIAL_DOWNLOAD, RunDir
from crepe_dist.runs.run_sync import RunSync, Status, in_background
from crepe_dist.sealed_json import read_record, validate, write_sealed_json

MANIFEST = "upload.json"  # List of the files of a copy.
FORMAT = 1  # Version of the list.
WRITE_TEST = ".write-test"  # Name of a file that exists for a moment before a new run.
# Files that may change. Until the end, their names at the URL contain their SHA-256.
CHANGING_FILES = (METRICS, CONFIG, RESULT, "report.html", "model_card.md", mlflow_sync.RUN_FILE, wandb_sync.RUN_FILE)
PATTERNS = (RUN_KEY_FILE, *CHANGING_FILES, f"{FOLDER}/*", "pseudo_labels/*")
LARGE_SUFFIXES = (".params", ".safetensors")  # Suffixes of files that are never changed, only removed.
# Size, SHA-256 and name at the URL of each file, by its name in the run folder.
Manifest = dict[str, dict[str, Any]]


def copy_url(url: str, path: Path) -> str:
    """Return the URL of the copy of a run folder."""
    return f"{url.rstrip('/')}/{Path(os.path.abspath(path)).name}"


def check_url(url: str) -> None:
    """Check that ``--upload`` can be used with a URL.

    Raises:
        UserError: The URL contains credentials, is read-only, or its library is not installed.
    """
    if remote.redact_url(url) != url:
        raise UserError(
            "the URL of --upload contains a user name, a password or a query",
            "it is saved in config.yaml, which others may read",
            "remove them from the URL, and put the credentials where the library of the store finds them",
        )
    remote.check_writable(url)


def read_manifest(url: str) -> Manifest | None:
    """Read the list of the files of a copy. Return ``None`` if there is no copy.

    Raises:
        UserError: The URL cannot be read.
        ValueError: The list is damaged.
    """
    with temporary_folder() as folder:
        if not remote.download_file(f"{url}/{MANIFEST}", folder / MANIFEST):
            return None
        try:
            files: Manifest = read_record(folder / MANIFEST, FORMAT, "")["files"]
            validate(files, dict[str, dict])  # type: ignore[type-arg]
            for local, entry in files.items():
                validate(entry, {"bytes": int, "sha256": str, "name": str})
                if any(PurePosixPath(name).is_absolute() or ".." in name.split("/") for name in (local, entry["name"])):
                    raise ValueError(f"{local} would leave the folder")
        except (UserError, KeyError) as error:
            raise ValueError(f"{MANIFEST} is damaged: {error}") from error
        return files


@contextmanager
def _may_succeed_later() -> Iterator[None]:
    """Give errors of the store the exit code that says that the same command may succeed."""
    try:
        yield
    except UserError as error:
        error.code = ExitCode.FAILURE
        raise


def _check_write_access(url: str) -> None:
    """Write and remove an empty file, because without write access, only the end of a long run would be an error."""
    with temporary_folder() as folder:
        (folder / WRITE_TEST).touch()
        remote.upload(folder / WRITE_TEST, f"{url}/{WRITE_TEST}")
    remote.remove(f"{url}/{WRITE_TEST}")


def restore(url: str, path: Path, say: Callable[[str], None], *, fresh: bool) -> Iterator[None]:
    """Download the copy of a run into its empty or missing folder. Yield at least every few seconds.

    A copy that is not complete is ignored with a warning. If there is no copy, check that one can be written.

    Args:
        fresh: Whether the user wants a new run.

    Raises:
        UserError: The URL cannot be read or written; or there is a copy, although ``fresh`` is true.
    """
    source, partial = copy_url(url, path), path / PARTIAL_DOWNLOAD

    def download() -> None:
        with _may_succeed_later():
            files = read_manifest(source)
            if files is None:
                _check_write_access(source)
                return
        if fresh:
            remedy = "choose another --run-dir or --upload, or resume this run without --fresh"
            raise UserError(f"{source} has the copy of a run, and --fresh would overwrite it", remedy=remedy)
        shutil.rmtree(partial, ignore_errors=True)
        for local, entry in files.items():
            target = partial / local
            target.parent.mkdir(parents=True, exist_ok=True)
            with _may_succeed_later():
                found = remote.download_file(f"{source}/{entry['name']}", target)
            if not found:
                raise ValueError(f"{entry['name']} is missing")
            if {**manifest_entry(target), "name": entry["name"]} != entry:
                raise ValueError(f"{entry['name']} does not match its checksum")
        # ``run.json`` is last, because it marks the folder as belonging to a run.
        for child in sorted(partial.iterdir(), key=lambda child: child.name == RUN_KEY_FILE):
            shutil.rmtree(path / child.name, ignore_errors=True)
            child.replace(path / child.name)
        say(f"download  {source}: {len(files)} files into {path}")

    try:
        for _ in in_background(download):
            yield
    except ValueError as error:
        warning = UserError(f"the copy at {source} is ignored", str(error), "none: the run starts from the beginning")
        say(warning.format_lines("warning"))
    except OSError as error:
        raise UserError(f"{source} cannot be copied to {path}", str(error), "free some disk space") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


class RunUploader(RunSync):
    """Thread that copies a run to a URL.

    Args:
        url: Value of ``logging.upload``.
    """

    needs_states = True

    def __init__(self, url: str, run: RunDir, say: Callable[[str], None]) -> None:
        super().__init__(run, say)
        self._url = copy_url(url, run.path)
        self._uploaded: Manifest | None = None  # Files of the last complete copy; ``None`` before the first copy.
        self._names: set[str] = set()  # Names of all files at the URL, also of files that a failed copy left.
        self._entries: dict[str, dict[str, Any]] = {}  # Manifest entries of files, by their names, sizes and times.

    def __str__(self) -> str:
        return f"the copy at {self._url}"

    def finish(self, status: Status = "FINISHED") -> Iterator[None]:
        """Copy the run. Yield about every second.

        Raises:
            UserError: The copy failed, so the run is only on the local disk.
        """
        if status == "FAILED":  # The copy of the last epoch has what the next attempt needs.
            return
        try:
            yield from super().finish(status)
        except UserError as error:
            what = f"the result is only in {self._run.path}: it could not be copied to {self._url}"
            remedy = f"{error.remedy}; then run the same command again, which only repeats the copy"
            raise UserError(what, error.why or error.what, remedy, code=ExitCode.FAILURE) from error
        if status == "FINISHED":
            self._say(f"copied to {self._url}")

    def sync(self, status: Status) -> None:
        """Copy the files that have changed since the last copy.

        Raises:
            UserError: The files cannot be read or written.
        """
        if self._uploaded is None:
            try:
                self._uploaded = read_manifest(self._url) or {}
            except ValueError:  # The list is damaged, so all files are copied.
                self._uploaded = {}
            self._names |= {entry["name"] for entry in self._uploaded.values()}
        try:
            with temporary_folder(self._run.path) as folder:
                self._copy(self._snapshot(folder), folder, is_final=status == "FINISHED")
        except (OSError, UserError) as error:
            self._uploaded = None  # The store may have lost files. Its list is read again.
            if isinstance(error, UserError):
                raise
            raise UserError(f"{self._run.path} cannot be copied", str(error), "check the disk") from error

    def _list_files(self) -> list[Path]:
        """List the files to copy: the files of the run, and the newest state of an unfinished run."""
        paths: list[Path] = []
        for run in (self._run, self._run.supervised):
            paths += [path for pattern in PATTERNS for path in run.path.glob(pattern)]
            if not (run.path / RESULT).is_file() and (states := sorted(run.state.glob("step_*"))):
                paths += [states[-1] / name for name in (*resume_state.FILES, resume_state.MANIFEST)]
        return [path for path in paths if not path.name.startswith(".")]

    def _snapshot(self, folder: Path) -> dict[str, Path]:
        """Link or copy the files into a folder, because training may remove or change them during the upload.

        Returns:
            Paths in ``folder``, by the names in the run folder.
        """
        snapshot: dict[str, Path] = {}
        for path in self._list_files():
            target = snapshot[str(path.relative_to(self._run.path))] = folder / str(len(snapshot))
            if path.suffix in LARGE_SUFFIXES:
                with suppress(OSError):  # Some file systems have no hard links.
                    os.link(path, target)
            if not target.exists():
                shutil.copy2(path, target)
        return snapshot

    def _copy(self, snapshot: dict[str, Path], folder: Path, *, is_final: bool) -> None:
        former = self._uploaded or {}
        stored = {entry["name"]: entry for entry in former.values()}
        files: Manifest = {}
        for local, path in snapshot.items():
            name, key = local, str([local, *fingerprint(path)[1:]])
            if (entry := self._entries.get(key)) is None or not local.endswith(LARGE_SUFFIXES):
                entry = self._entries[key] = manifest_entry(path)
            if Path(local).name in CHANGING_FILES and not is_final:
                name = f"{local}.{entry['sha256'][:12]}"
            files[local] = {**entry, "name": name}
            if stored.get(name) != files[local]:
                self._names.add(name)
                remote.upload(path, f"{self._url}/{name}")
        if files != former:
            write_sealed_json(folder / MANIFEST, FORMAT, {"files": files})
            remote.upload(folder / MANIFEST, f"{self._url}/{MANIFEST}")
        self._uploaded = files
        current = {entry["name"] for entry in files.values()}
        for name in self._names - current:
            remote.remove(f"{self._url}/{name}")
        self._names = current
