"""Self-contained web page that classifies texts in the browser.

The page contains ONNX Runtime Web, the model and a script. The page can be served by any web server or opened as a
local file, and makes no network connections. At the first export, npm downloads ONNX Runtime Web to the user's cache.
"""

import base64
import gzip
import hashlib
import io
import re
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import onnxruntime
from markupsafe import Markup

from crepe_dist.data import markup
from crepe_dist.errors import UserError
from crepe_dist.files.atomic_write import fsync
from crepe_dist.files.folders import cache_folder
from crepe_dist.files.safe_read import read_bytes
from crepe_dist.formatting import size
from crepe_dist.model.weights_io import config_class
from crepe_dist.predicting.prediction import REJECTED
from crepe_dist.predicting.predictor import Predictor
from crepe_dist.reports import page
from crepe_dist.reports.explanation import BARS
from crepe_dist.reports.findings import basic_limits
from crepe_dist.version import __version__

PAGE = "index.html"
# Maximum size of the model, in bytes. While the page loads, the browser holds four copies of the model in memory. One
# of them is a string, and V8 limits strings to 2^29 characters.
MAX_MODEL_BYTES = 128_000_000
NOTICES = {"LICENSE": "onnxruntime-LICENSE.txt", "ThirdPartyNotices.txt": "onnxruntime-ThirdPartyNotices.txt"}
VERSION = "1.30.0"  # Version of ONNX Runtime Web.
# Checksum of the package: `npm view onnxruntime-web@VERSION dist.integrity`.
SHA512 = "q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="
PACKAGE, ARCHIVE = f"onnxruntime-web@{VERSION}", f"onnxruntime-web-{VERSION}.tgz"
MAX_ARCHIVE_BYTES = 1 << 26  # Maximum size of the package, in bytes. The actual size is 33 MB.
# The build for WebAssembly on the CPU, without WebGPU and WebGL.
SCRIPT, BINARY = "package/dist/ort.wasm.bundle.min.mjs", "package/dist/ort-wasm-simd-threaded.wasm"
EXPORTS = re.compile(r"\bexport\s*\{([^{}]*)\};?(\s*//[^\n]*)?\s*$")
NAME = re.compile(r"([\w$]+) as (\w+)")


def write(onnx: bytes, about: dict[str, Any], model: Predictor, folder: Path) -> None:
    """Write the page and the licences of ONNX Runtime into ``folder``.

    The Content-Security-Policy of the page permits only the page's own styles and scripts, and WebAssembly. The policy
    blocks all network connections.

    Raises:
        UserError: The network is too large for a browser, or npm cannot download the runtime.
    """
    if len(onnx) > MAX_MODEL_BYTES:
        raise UserError(
            f"the network is too large for a page: {size(len(onnx))}; the limit of browsers is {size(MAX_MODEL_BYTES)}",
            remedy="use --format onnx, or the command serve",
        )
    script, runtime = web_runtime()
    values = {
        "model": model,
        "bars": min(len(model.classes), BARS),
        "about": about,
        "network": config_class(about).title,
        "limits": basic_limits(about, model.is_multilabel),
        "runtime": Markup(script),
        "runtime_version": VERSION,
        "rejected": REJECTED,
        "markup": markup if model.composition.strip_html else None,
        "version": __version__,
    }
    bare = page.render("web.html", **values, policy="", binary="", onnx="", size="")
    policy = Markup(page.content_security_policy(bare, script="'wasm-unsafe-eval'"))
    binary, packed = _packed(runtime), _packed(onnx)
    total = size(len(binary) + len(packed))
    html = page.render("web.html", **values, policy=policy, binary=binary, onnx=packed, size=total)
    (folder / PAGE).write_text(html, encoding="utf-8")
    for name, copy in NOTICES.items():
        shutil.copyfile(Path(onnxruntime.__file__).with_name(name), folder / copy)


def _packed(data: bytes) -> Markup:
    """Compress data with gzip and encode it as Base64."""
    return Markup(base64.b64encode(gzip.compress(data, mtime=0)).decode("ascii"))


def web_runtime() -> tuple[str, bytes]:
    """Read the script and the WebAssembly of the runtime from the cache. Download the package first if it is missing.

    Raises:
        UserError: The program ``npm`` cannot download the package, or the checksum of the package is wrong.
    """
    path = cache_folder() / ARCHIVE
    if not path.exists():
        _download(path)
    data = read_bytes(path, MAX_ARCHIVE_BYTES)
    if base64.b64encode(hashlib.sha512(data).digest()).decode("ascii") != SHA512:
        remedy = "delete this file, check npm's registry setting"
        raise UserError(f"{path} is not {PACKAGE}: its SHA-512 differs", remedy=remedy)
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:gz") as package:
        members = [package.extractfile(name) for name in (SCRIPT, BINARY)]
        script, binary = (member.read() for member in members if member is not None)
    return as_global(script.decode("utf-8")), binary


def as_global(module: str) -> str:
    """Replace the exports of a JavaScript module with properties of the global object ``ort``.

    This is necessary because an inline module cannot be imported. The function also removes ``import.meta.url``, so
    that the module uses the WebAssembly that the page passes. Otherwise, local pages would fail in Firefox, where a
    local file has the origin "null", and URLs cannot be relative to this origin.
    """
    exports = EXPORTS.search(module)
    assert exports is not None, "the checksum guarantees the content of the module"
    names = ", ".join(f"{exported}: {name}" for name, exported in NAME.findall(exports[1]))
    body = module[: exports.start()].replace("import.meta.url", "undefined")
    return f"{body}globalThis.ort = {{{names}}};\n"


def _download(path: Path) -> None:
    by_hand = f"run `npm pack {PACKAGE}` on another machine and copy {ARCHIVE} to {path.parent}"
    npm = shutil.which("npm")
    if npm is None:
        remedy = f"install npm (apt-get install npm, or Node.js), or {by_hand}"
        raise UserError("npm, which downloads ONNX Runtime Web (33 MB, once), is not installed", remedy=remedy)
    print(f"npm downloads {PACKAGE} (33 MB, once)", flush=True)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f"{ARCHIVE}.") as scratch:
            # npm runs in an empty folder, so that it does not read the settings of a project.
            subprocess.run(
                [npm, "pack", PACKAGE, "--ignore-scripts", "--no-update-notifier"],
                cwd=scratch, check=True, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace",
            )  # fmt: skip
            fsync(Path(scratch) / ARCHIVE)
            (Path(scratch) / ARCHIVE).replace(path)
    except (OSError, subprocess.CalledProcessError) as error:
        said = getattr(error, "stderr", "").strip() or str(error)
        raise UserError(f"{PACKAGE} could not be downloaded", said[-300:], f"fix this error, or {by_hand}") from None
