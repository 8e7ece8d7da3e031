"""ONNX Runtime Web from its npm package, downloaded once by the user's npm into the user's cache."""

from __future__ import annotations

import base64
import hashlib
import io
import re
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path
from typing import NamedTuple

from crepe_dist.errors import UserError
from crepe_dist.files import cache_folder, read_bytes, sync

VERSION = "1.30.0"
# Checksum of the package: `npm view onnxruntime-web@VERSION dist.integrity`.
SHA512 = "q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="
PACKAGE, ARCHIVE = f"onnxruntime-web@{VERSION}", f"onnxruntime-web-{VERSION}.tgz"
MAX_ARCHIVE_BYTES = 1 << 26  # the package has 33 MB
# The build for WebAssembly on the CPU alone (no WebGPU, no WebGL).
SCRIPT, BINARY = "package/dist/ort.wasm.bundle.min.mjs", "package/dist/ort-wasm-simd-threaded.wasm"
EXPORTS = re.compile(r"\bexport\s*\{([^{}]*)\};?(\s*//[^\n]*)?\s*$")
NAME = re.compile(r"([\w$]+) as (\w+)")


class WebRuntime(NamedTuple):
    """Runtime to embed into a page."""

    script: str
    binary: bytes


def archive() -> Path:
    """Return the path of the package in the cache, whether or not it exists."""
    return cache_folder() / ARCHIVE


def web_runtime() -> WebRuntime:
    """Read the runtime from the cache, downloading the package first if necessary.

    Raises:
        UserError: npm cannot download the package, or its checksum is wrong.
    """
    path = archive()
    if not path.exists():
        _download(path)
    try:
        data = read_bytes(path, MAX_ARCHIVE_BYTES)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read", str(error), "delete it; it is downloaded again") from error
    if base64.b64encode(hashlib.sha512(data).digest()).decode("ascii") != SHA512:
        raise UserError(
            f"{path} is not {PACKAGE}", "its SHA-512 differs", "check npm's registry setting, then delete the file"
        )
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:gz") as package:
        script, binary = (_content(package, name) for name in (SCRIPT, BINARY))
    return WebRuntime(as_global(script.decode("utf-8")), binary)


def as_global(module: str) -> str:
    """Turn the exports of a module into properties of the global ``ort``, because inline modules cannot be imported.

    The module must not derive URLs from ``import.meta.url`` either: in a page opened as a file that fails in browsers
    in which the origin of a file is "null", such as Firefox. Without the URL, the module uses the WebAssembly that it
    is given.
    """
    exports = EXPORTS.search(module)
    if exports is None or "</script" in module or "<!--" in module:
        raise ValueError(f"the script of {PACKAGE} has an unexpected form")
    names = ", ".join(f"{exported}: {name}" for name, exported in NAME.findall(exports[1]))
    body = module[: exports.start()].replace("import.meta.url", "undefined")
    return f"{body}globalThis.ort = {{{names}}};\n"


def _content(package: tarfile.TarFile, name: str) -> bytes:
    member = package.extractfile(name)
    assert member is not None  # guaranteed by the checksum
    return member.read()


def _download(path: Path) -> None:
    failed = f"{PACKAGE} could not be downloaded"
    by_hand = f"or run `npm pack {PACKAGE}` on another machine and copy {ARCHIVE} to {path.parent}"
    npm = shutil.which("npm")
    if npm is None:
        raise UserError(
            "npm is not installed",
            "it downloads ONNX Runtime Web (33 MB, once), which a page contains",
            f"install npm (apt-get install npm, or Node.js), {by_hand}",
        )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f"{ARCHIVE}.") as scratch:
            # An empty folder has no project settings for npm.
            subprocess.run(
                [npm, "pack", PACKAGE, "--ignore-scripts", "--no-update-notifier"],
                cwd=scratch, check=True, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace",
            )  # fmt: skip
            sync(Path(scratch) / ARCHIVE)
            (Path(scratch) / ARCHIVE).replace(path)
    except subprocess.CalledProcessError as error:
        lines = [line for line in error.stderr.splitlines() if "error" in line.lower()]
        raise UserError(failed, "; ".join(lines[:2])[:300] or str(error), f"fix this error, {by_hand}") from None
    except OSError as error:
        raise UserError(failed, str(error), f"fix this error, {by_hand}") from error
