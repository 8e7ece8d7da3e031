"""Page of the HTTP service. It is the same for every request, so it is rendered once."""

from __future__ import annotations

from collections.abc import Sequence

from crepe_dist.predicting.prediction import NONE, ModelSummary
from crepe_dist.reports import page
from crepe_dist.reports.explanation import COLOUR_THRESHOLD, LEVELS, NOISE
from crepe_dist.settings.options import ServiceOptions
from crepe_dist.version import __version__

BARS = 12  # with more classes, only the most probable ones are shown


def render(model: ModelSummary, options: ServiceOptions, examples: Sequence[str]) -> tuple[str, str]:
    """Return the page and a Content-Security-Policy that allows only its own style and script."""
    html = page.render(
        "serve.html",
        model=model,
        bars=min(len(model.classes), BARS),
        rejected=NONE,
        max_chars=options.max_chars,
        timeout=options.timeout,
        examples=examples,
        marked={"levels": LEVELS, "threshold": COLOUR_THRESHOLD, "noise": NOISE},
        version=__version__,
    )
    return html, page.policy(html, connect_src="'self'", frame_ancestors="'none'")
