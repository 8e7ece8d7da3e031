"""The page for people: rendered once, since nothing in it depends on who asks."""

from __future__ import annotations

import base64
import hashlib
import re

from crepe_dist import __version__
from crepe_dist.reports import page
from crepe_dist.serving.facts import Facts
from crepe_dist.serving.options import ServiceOptions

BARS = 12  # classes; of more than that, the most probable are shown


def render(facts: Facts, options: ServiceOptions) -> tuple[str, str]:
    """The page, and the Content-Security-Policy that allows its own style and script and nothing else."""
    html = page.render(
        "serve.html",
        facts=facts,
        bars=min(len(facts.classes), BARS),
        max_chars=options.max_chars,
        timeout=options.timeout,
        version=__version__,
    )
    policy = {
        "default-src": "'none'",
        "script-src": _hashes(html, "script"),
        "style-src": _hashes(html, "style"),
        "connect-src": "'self'",
        "img-src": "data:",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }
    return html, "; ".join(f"{name} {value}" for name, value in policy.items())


def _hashes(html: str, tag: str) -> str:
    found = re.findall(f"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
    digests = (hashlib.sha256(each.encode("utf-8")).digest() for each in found)
    return " ".join(f"'sha256-{base64.b64encode(each).decode('ascii')}'" for each in digests)
