"""Model folders that are named by a URL, such as ``hf://owner/name``, copied into the user's cache."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from crepe_dist.files import cache_folder, sha256, sync
from crepe_dist.model import tensors_file
from crepe_dist.preparing.remote import copy
from crepe_dist.scratch import scratch

CACHED = "models"  # in the cache
DESCRIPTION = Path(tensors_file.NAME).with_suffix(".json").name


def fetch(url: str) -> Path:
    """Copy the model folder at a URL into the cache, and return the path of its parameters.

    In the cache, a folder has the SHA-256 of its description for a name, which in turn has that of the parameters: a
    model is copied once, and again when it has changed.

    Raises:
        UserError: The library for this kind of URL is not installed, or there is no model folder.
    """
    cache = cache_folder() / CACHED
    cache.mkdir(parents=True, exist_ok=True)
    with scratch(cache) as copies:
        about = copy(f"{url.rstrip('/')}/{DESCRIPTION}", copies)
        folder = cache / sha256(about)
        if not folder.is_dir():
            for path in (about, copy(f"{url.rstrip('/')}/{tensors_file.NAME}", copies)):
                sync(path)
            with suppress(OSError):  # another process has copied it meanwhile
                about.parent.rename(folder)
    return folder / tensors_file.NAME
