"""The network as one page that classifies what a person types, in the browser: ONNX Runtime Web, the model, the encoder
and the page's own script stand in it, so it works from any server and as a file, and asks nobody for anything."""

from __future__ import annotations

import base64
import gzip
import shutil
from pathlib import Path
from typing import Any

import onnxruntime
from markupsafe import Markup

from crepe_dist.errors import UserError
from crepe_dist.exporting import web_runtime
from crepe_dist.model.parameters import shape_class
from crepe_dist.predicting.model_summary import ModelSummary
from crepe_dist.reports import page
from crepe_dist.reports.classify_page import BARS
from crepe_dist.reports.run_findings import reach
from crepe_dist.version import __version__
from crepe_dist.wording import size

PAGE = "index.html"
ENCODER = Path(__file__).with_name("encoder.js")
# Bytes of a model: for a moment a browser holds it four times, once as a text, which has at most 2^29 characters in V8.
LARGEST = 128_000_000
NOTICES = {"LICENSE": "onnxruntime-LICENSE.txt", "ThirdPartyNotices.txt": "onnxruntime-ThirdPartyNotices.txt"}


def write(model: bytes, about: dict[str, Any], facts: ModelSummary, folder: Path) -> None:
    """Writes the page and, beside it, the licences of ONNX Runtime.

    Args:
        model: an ONNX file.
        about: its metadata.

    Raises:
        UserError: the model is too large, or ONNX Runtime Web is not to be had.
    """
    if len(model) > LARGEST:
        raise UserError(
            f"the network is too large for a page: {size(len(model))}",
            f"a browser has to hold all of it; {size(LARGEST)} are the most",
            "take --format onnx, or serve it (python -m crepe_dist.serve)",
        )
    (folder / PAGE).write_text(render(model, about, facts), encoding="utf-8")
    for name, ours in NOTICES.items():
        shutil.copyfile(Path(onnxruntime.__file__).with_name(name), folder / ours)


def render(model: bytes, about: dict[str, Any], facts: ModelSummary) -> str:
    """The page; its Content-Security-Policy allows its own style and scripts by their hashes, WebAssembly, and no
    connection to anywhere."""
    runtime = web_runtime.web_runtime()
    values = {
        "facts": facts,
        "bars": min(len(facts.classes), BARS),
        "about": about,
        "network": shape_class(about).title,
        "limits": reach(about),
        "encoder": Markup(ENCODER.read_text(encoding="utf-8")),
        "runtime": Markup(runtime.script),
        "runtime_version": web_runtime.VERSION,
        "version": __version__,
    }
    template = "web.html"
    bare = page.render(template, **values, policy="", binary="", model="", size="")
    policy = {
        "default-src": "'none'",
        "script-src": f"{page.hashes(bare, 'script')} 'wasm-unsafe-eval'",
        "style-src": page.hashes(bare, "style"),
        "img-src": "data:",
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    binary, packed = _packed(runtime.binary), _packed(model)
    return page.render(
        template,
        **values,
        policy=Markup("; ".join(f"{name} {value}" for name, value in policy.items())),
        binary=binary,
        model=packed,
        size=size(len(binary) + len(packed)),
    )


def _packed(data: bytes) -> Markup:
    """Gzip in Base64, which takes less room than the bytes themselves where many are alike."""
    return Markup(base64.b64encode(gzip.compress(data, mtime=0)).decode("ascii"))
