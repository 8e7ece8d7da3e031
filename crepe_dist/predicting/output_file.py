"""Atomic writer of the output file of ``predict``: the file gets its final name only when it is complete."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

from crepe_dist.errors import escape_controls
from crepe_dist.files.atomic_write import fsync, name_path_in_errors
from crepe_dist.files.folders import cache_folder
from crepe_dist.preparing import remote

CACHED = "predictions"  # Folder in the user's cache for files that will be uploaded to a URL.


@contextmanager
def temporary_output(out: str) -> Iterator[Path]:
    """Provide the path of a temporary file. Rename or upload the file to ``out`` after the block.

    The temporary file is in the folder of ``out``. If ``out`` is a symbolic link, the link stays and its target is
    replaced. If ``out`` is a URL, the temporary file is in the user's cache. After an error or an interruption, ``out``
    is unchanged. The temporary file is then kept under its own name unless it is empty, and its path is printed.

    Args:
        out: Path or URL.
    """
    is_url, is_complete = remote.is_url(out), False
    target = Path(PurePosixPath(urlsplit(out).path).name or "predictions" if is_url else os.path.realpath(out))
    if is_url:
        temporary = cache_folder() / CACHED / str(os.getpid()) / target.name
        temporary.parent.mkdir(parents=True, exist_ok=True)
    else:
        temporary = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        with name_path_in_errors(temporary):
            yield temporary
            fsync(temporary)
        is_complete = True
        if is_url:
            remote.upload(temporary, out)
            temporary.unlink()
        else:
            temporary.replace(target)
    except BaseException:
        _report_temporary_file(temporary, out, is_complete=is_complete)
        raise
    finally:
        if is_url:
            with suppress(OSError):  # The folder is not empty if the file was kept.
                temporary.parent.rmdir()


def _report_temporary_file(temporary: Path, out: str, *, is_complete: bool) -> None:
    """Print the path of the temporary file. Remove the file if it is empty."""
    if not temporary.exists():
        return
    if not temporary.stat().st_size:
        temporary.unlink()
        return
    extent = "all predictions are" if is_complete else "the incomplete predictions are"
    print(escape_controls(f"{remote.redact_url(out)} was not written; {extent} in {temporary}"), file=sys.stderr)
