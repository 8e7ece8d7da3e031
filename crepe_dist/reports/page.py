"""A report as one HTML file that needs nothing else, made of a template."""

from __future__ import annotations

import base64
import hashlib
import re
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from crepe_dist import wording


def render(template: str, **values: Any) -> str:
    """A template of ``reports/templates`` as text; all values are escaped, and a missing one is an error."""
    environment = Environment(
        loader=PackageLoader("crepe_dist.reports"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for each in (wording.number, wording.percent, wording.size, wording.cut, wording.counted, wording.visible):
        environment.filters[each.__name__] = each
    return environment.get_template(template).render(values)


def hashes(markup: str, tag: str) -> str:
    """What a Content-Security-Policy says to allow the style sheets (``style``) or the scripts (``script``, all of them
    modules) that stand in a page, and no others."""
    found = re.findall(f"<{tag}(?: type=.module.)?>(.*?)</{tag}>", markup, re.DOTALL)
    digests = (hashlib.sha256(each.encode("utf-8")).digest() for each in found)
    return " ".join(f"'sha256-{base64.b64encode(each).decode('ascii')}'" for each in digests)
