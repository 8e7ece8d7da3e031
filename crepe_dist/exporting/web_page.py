"""Self-contained web page that classifies text in the browser.

The page contains ONNX Runtime Web, the model and its own script. It works from any server or as a file,
and never opens a connection.
"""

from __future__ import annotations

import base64
import gzip
import shutil
from pathlib import Path
from typing import Any

import onnxruntime
from markupsafe import Markup

from crepe_dist import invocation
from crepe_dist.errors import UserError
from crepe_dist.exporting import web_runtime
from crepe_dist.model.parameters import shape_class
from crepe_dist.predicting.model_summary import ModelSummary
from crepe_dist.predicting.prediction import NONE
from crepe_dist.reports import page
from crepe_dist.reports.classify_page import BARS
from crepe_dist.reports.run_findings import basic_limits
from crepe_dist.version import __version__
from crepe_dist.wording import size

PAGE = "index.html"
# While loading, a browser holds four copies of the model, one of them as text; V8 limits texts to 2^29 characters.
MAX_MODEL_BYTES = 128_000_000
NOTICES = {"LICENSE": "onnxruntime-LICENSE.txt", "ThirdPartyNotices.txt": "onnxruntime-ThirdPartyNotices.txt"}


def write(onnx: bytes, about: dict[str, Any], model: ModelSummary, folder: Path) -> None:
    """Write the page into ``folder``, with the licences of ONNX Runtime beside it."""
    if len(onnx) > MAX_MODEL_BYTES:
        raise UserError(
            f"the network is too large for a page: {size(len(onnx))}",
            f"a browser has to hold all of it in memory; the limit is {size(MAX_MODEL_BYTES)}",
            f"use --format onnx, or serve it ({invocation.typed('serve')})",
        )
    (folder / PAGE).write_text(render(onnx, about, model), encoding="utf-8")
    for name, copy in NOTICES.items():
        shutil.copyfile(Path(onnxruntime.__file__).with_name(name), folder / copy)


def render(onnx: bytes, about: dict[str, Any], model: ModelSummary) -> str:
    """Render the page; its Content-Security-Policy allows its own style and scripts, WebAssembly and no connections."""
    runtime = web_runtime.web_runtime()
    values = {
        "model": model,
        "bars": min(len(model.classes), BARS),
        "about": about,
        "network": shape_class(about).title,
        "limits": basic_limits(about, model.several),
        "runtime": Markup(runtime.script),
        "runtime_version": web_runtime.VERSION,
        "rejected": NONE,
        "version": __version__,
    }
    template = "web.html"
    bare = page.render(template, **values, policy="", binary="", onnx="", size="")
    binary, packed = _packed(runtime.binary), _packed(onnx)
    return page.render(
        template,
        **values,
        policy=Markup(page.policy(bare, script="'wasm-unsafe-eval'")),
        binary=binary,
        onnx=packed,
        size=size(len(binary) + len(packed)),
    )


def _packed(data: bytes) -> Markup:
    """Compress data with gzip and encode it as Base64."""
    return Markup(base64.b64encode(gzip.compress(data, mtime=0)).decode("ascii"))
