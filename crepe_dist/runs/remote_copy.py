"""Copy of a run at a URL, for machines whose disk is lost with them.

The copy is at ``URL/<name of the run folder>``. It contains the files that a resumed run needs, or the files of the
finished run. ``upload.json`` is written last. It lists the files with their sizes and SHA-256, so a copy that was
interrupted is recognised. During training, a copy does not overwrite the files of the previous copy, and removes them
only after its own ``upload.json`` has been written.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from concurrent import futures
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path, PurePosixPath
from threading import Thread
from typing import Any, TypeVar

from crepe_dist.distributed.signals import StopRequested
from crepe_dist.errors import ExitCode, UserError
from crepe_dist.files.folders import temporary_folder
from crepe_dist.files.safe_read import fingerprint, manifest_entry
from crepe_dist.preparing import remote
from crepe_dist.runs import resume_state
from crepe_dist.runs.checkpoint import CONFIG, FOLDER, RESULT, RUN_KEY_FILE
from crepe_dist.runs.metrics import METRICS
from crepe_dist.runs.run_dir import PARTIAL_DOWNLOAD, RunDir
from crepe_dist.sealed_json import read_record, validate, write_sealed_json

MANIFEST = "upload.json"  # List of the files of a copy.
FORMAT = 1  # Version of the list.
# Files that may change. Until the end, their names at the URL contain their SHA-256.
CHANGING_FILES = (METRICS, CONFIG, RESULT, "report.html", "model_card.md")
PATTERNS = (RUN_KEY_FILE, *CHANGING_FILES, f"{FOLDER}/*", "pseudo_labels/*")
LARGE_SUFFIXES = (".params", ".safetensors")  # Suffixes of files that are never changed, only removed.
MAX_ATTEMPTS = 3  # Maximum number of attempts if training removes files during a copy.
STOP_SECONDS = 20  # Time limit for the copy after a request to stop. Launchers usually kill a process after 30 s.
T = TypeVar("T")
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


def in_background(function: Callable[[], T]) -> Iterator[T | None]:
    """Run a function in a thread. Yield ``None`` every second until it ends, and finally its result.

    The thread does not keep the process alive, because a server that does not answer would block its exit.
    """
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(function())
        except BaseException as error:
            future.set_exception(error)

    Thread(target=run, daemon=True, name="remote copy").start()
    while not future.done():
        futures.wait([future], 1.0)
        yield None
    yield future.result()


def read_manifest(url: str) -> Manifest | None:
    """Read the list of the files of a copy. Return ``None`` if there is no copy.

    Raises:
        UserError: The URL cannot be read.
        ValueError: The list is damaged.
    """
    with temporary_folder() as folder:
        if not _download(f"{url}/{MANIFEST}", folder / MANIFEST):
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


def _download(url: str, path: Path) -> bool:
    """Call ``remote.download_file``. The exit code of an error says that the same command may succeed."""
    try:
        return remote.download_file(url, path)
    except UserError as error:
        error.code = ExitCode.FAILURE
        raise


def restore(url: str, path: Path, say: Callable[[str], None], *, fresh: bool) -> Iterator[None]:
    """Download the copy of a run into its empty or missing folder. Yield at least every few seconds.

    A copy that is not complete is ignored with a warning.

    Args:
        fresh: Whether the user wants a new run.

    Raises:
        UserError: The URL cannot be read; or there is a copy, although ``fresh`` is true.
    """
    source, partial = copy_url(url, path), path / PARTIAL_DOWNLOAD

    def download() -> None:
        files = read_manifest(source)
        if files is None or fresh:
            if files:
                remedy = "choose another --run-dir or --upload, or resume this run without --fresh"
                raise UserError(f"{source} has the copy of a run, and --fresh would overwrite it", remedy=remedy)
            return
        shutil.rmtree(partial, ignore_errors=True)
        for local, entry in files.items():
            target = partial / local
            target.parent.mkdir(parents=True, exist_ok=True)
            if not _download(f"{source}/{entry['name']}", target):
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


class RunUploader:
    """Thread of rank 0 that copies a run to a URL. Training never waits for it, except at the end.

    Args:
        url: Value of ``logging.upload``.
        say: Function that prints a warning if a copy has failed.

    Attributes:
        url: URL of the copy of this run.
    """

    def __init__(self, url: str, run: RunDir, say: Callable[[str], None]) -> None:
        self.url = copy_url(url, run.path)
        self._run = run
        self._say = say
        self._thread: Thread | None = None
        self._uploaded: Manifest | None = None  # Files of the last complete copy; ``None`` before the first copy.
        self._names: set[str] = set()  # Names of all files at the URL, also of files that a failed copy left.
        self._entries: dict[str, dict[str, Any]] = {}  # Manifest entries of files, by their fingerprint.

    def __enter__(self) -> RunUploader:
        return self

    def __exit__(self, kind: Any, *error: object) -> None:
        """After a request to stop, copy the saved state, but wait for at most ``STOP_SECONDS``."""
        if kind is not None and issubclass(kind, StopRequested):
            with suppress(UserError):
                for second, _ in enumerate(self.finish(is_final=False)):
                    if second >= STOP_SECONDS:
                        self._say(f"{self.url} may lack the newest state: the copy takes over {STOP_SECONDS} s")
                        break

    def start(self, saving: Future[Path] | None = None) -> None:
        """Start a copy in the background, unless the previous copy is still in progress.

        Args:
            saving: Save of a state to wait for.
        """

        def run() -> None:
            try:
                if saving is not None:
                    futures.wait([saving])
                self._upload(is_final=False)
            except UserError as error:
                error.remedy += "; training continues, and the next epoch repeats the copy"
                self._say(error.format_lines("warning"))

        if self._thread is None or not self._thread.is_alive():
            self._thread = Thread(target=run, daemon=True, name="upload")
            self._thread.start()

    def finish(self, *, is_final: bool = True) -> Iterator[None]:
        """Copy the run. Yield about every second.

        Args:
            is_final: Whether the run is finished.

        Raises:
            UserError: The copy failed, so the run is only on the local disk.
        """
        while self._thread is not None and self._thread.is_alive():
            self._thread.join(1.0)
            yield
        try:
            for _ in in_background(lambda: self._upload(is_final)):
                yield
        except UserError as error:
            what = f"the result is only in {self._run.path}: it could not be copied to {self.url}"
            remedy = f"{error.remedy}; then run the same command again, which only repeats the copy"
            raise UserError(what, error.why or error.what, remedy, code=ExitCode.FAILURE) from error

    def _upload(self, is_final: bool) -> None:
        """Copy the files that have changed since the last copy.

        Raises:
            UserError: The files cannot be read or written.
        """
        if self._uploaded is None:
            try:
                self._uploaded = read_manifest(self.url) or {}
            except ValueError:  # The list is damaged, so all files are copied.
                self._uploaded = {}
            self._names |= {entry["name"] for entry in self._uploaded.values()}
        for attempt in range(1, MAX_ATTEMPTS + 1):
            paths = self._list_files()
            try:
                self._copy(paths, is_final)
                return
            except (OSError, UserError) as error:
                # Training may have removed a file that it no longer needs.
                if attempt < MAX_ATTEMPTS and self._list_files() != paths:
                    continue
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

    def _copy(self, paths: list[Path], is_final: bool) -> None:
        former = self._uploaded or {}
        stored = {entry["name"]: entry for entry in former.values()}
        files: Manifest = {}
        with temporary_folder() as folder:
            for path in paths:
                name = local = str(path.relative_to(self._run.path))
                if path.suffix in LARGE_SUFFIXES:
                    key = str(fingerprint(path))
                    entry = self._entries[key] = self._entries.get(key) or manifest_entry(path)
                else:  # Training may change the file during the copy.
                    path = Path(shutil.copyfile(path, folder / "copy"))
                    entry = manifest_entry(path)
                if Path(local).name in CHANGING_FILES and not is_final:
                    name = f"{local}.{entry['sha256'][:12]}"
                files[local] = {**entry, "name": name}
                if stored.get(name) != files[local]:
                    self._names.add(name)
                    remote.upload(path, f"{self.url}/{name}")
            if files != former:
                write_sealed_json(folder / MANIFEST, FORMAT, {"files": files})
                remote.upload(folder / MANIFEST, f"{self.url}/{MANIFEST}")
        self._uploaded = files
        current = {entry["name"] for entry in files.values()}
        for name in self._names - current:
            remote.remove(f"{self.url}/{name}")
        self._names = current
