"""Self-contained HTML pages, rendered from Jinja templates."""

from __future__ import annotations

import base64
import hashlib
import re
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from crepe_dist import wording
from crepe_dist.reports import colours


def render(template: str, **values: Any) -> str:
    """Render a template of ``reports/templates``; values are escaped, and a missing value raises an error."""
    environment = Environment(
        loader=PackageLoader("crepe_dist.reports"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for each in (
        wording.number,
        wording.percent,
        wording.size,
        wording.cut,
        wording.counted,
        wording.visible,
        wording.nth,
    ):
        environment.filters[each.__name__] = each
    environment.filters["flags"] = flags
    environment.globals["colours"] = colours
    return environment.get_template(template).render(values)


def flags(text: str) -> Markup:
    """Escape a text, and mark the flags in it, which must not be broken after a hyphen."""
    return Markup(re.sub(r"--[a-z][\w.-]*", r'<code class="flag">\g<0></code>', str(escape(text))))


def hashes(markup: str, tag: str) -> str:
    """Return the Content-Security-Policy sources that allow exactly the inline styles or scripts of a page.

    Args:
        markup: the page.
        tag: ``style`` or ``script``.
    """
    found = re.findall(f"<{tag}(?: type=.module.)?>(.*?)</{tag}>", markup, re.DOTALL)
    digests = (hashlib.sha256(each.encode("utf-8")).digest() for each in found)
    return " ".join(f"'sha256-{base64.b64encode(each).decode('ascii')}'" for each in digests)
