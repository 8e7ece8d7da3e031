"""Verification of the files of a data set folder by the checksums in its manifest."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

from crepe_dist import hardware
from crepe_dist.data.dataset import Dataset
from crepe_dist.errors import UserError
from crepe_dist.files.json_file import read_json, write_json
from crepe_dist.files.safe_read import sha256


def verify(dataset: Dataset, record: Path | None = None, beat: Callable[[], None] = lambda: None) -> None:
    """Compare the SHA-256 of every file of a data set with the manifest.

    Args:
        record: Cache file with the size, times and inode of each verified file. A file whose size, times and inode are
            unchanged is not read again.
        beat: Callback during reading, such as a watchdog's heartbeat.

    Raises:
        UserError: A file differs from the manifest. The message names the file.
    """
    splits = dataset.manifest["splits"].values()
    digests = {file: entry["sha256"] for split in splits for file, entry in split["files"].items()}
    recorded: Any = {}
    with suppress(OSError, ValueError):
        recorded = read_json(record) if record is not None else {}
    recorded = recorded if isinstance(recorded, dict) else {}
    stats = {file: (dataset.folder / file).stat() for file in digests}
    current = {
        file: [digests[file], stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]
        for file, stat in stats.items()
    }
    unread = [file for file in digests if recorded.get(file) != current[file]]
    with ThreadPoolExecutor(hardware.num_cores()) as pool:
        for file, digest in zip(unread, pool.map(lambda file: _digest(dataset.folder / file, beat), unread)):
            if digest != digests[file]:
                raise UserError(
                    f"{dataset.folder / file} was altered since it was prepared",
                    "its SHA-256 is not the one in the manifest",
                    "prepare the data again",
                )
    if record is not None and unread:
        record.parent.mkdir(exist_ok=True)
        write_json(record, current)


def _digest(path: Path, beat: Callable[[], None]) -> str:
    try:
        return sha256(path, follow=False, on_block=beat)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be verified", str(error), "prepare the data again") from error
