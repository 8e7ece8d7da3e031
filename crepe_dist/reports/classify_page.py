"""The page for people: rendered once, since nothing in it depends on who asks."""

from __future__ import annotations

from crepe_dist.predicting.model_summary import ModelSummary
from crepe_dist.reports import page
from crepe_dist.settings.serving_options import ServiceOptions
from crepe_dist.version import __version__

BARS = 12  # classes; of more than that, the most probable are shown


def render(facts: ModelSummary, options: ServiceOptions) -> tuple[str, str]:
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
        "script-src": page.hashes(html, "script"),
        "style-src": page.hashes(html, "style"),
        "connect-src": "'self'",
        "img-src": "data:",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }
    return html, "; ".join(f"{name} {value}" for name, value in policy.items())
