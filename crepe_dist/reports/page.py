"""Self-contained HTML pages, rendered from Jinja templates.

Jinja is an optional dependency. The functions import it, so that the report modules can print tables without it.
"""

import base64
import hashlib
import re
from typing import Any

from crepe_dist import formatting
from crepe_dist.reports import drawing


def render(template: str, **values: Any) -> str:
    """Render a template of ``reports/templates``. Values are escaped. A missing value raises an error."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("crepe_dist.reports"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters = ("number", "percent", "size", "truncate_to_width", "pluralize", "excerpt")
    environment.filters.update({name: getattr(formatting, name) for name in filters})
    environment.globals["colours"] = drawing
    return environment.get_template(template).render(values)


def content_security_policy(markup: str, *, script: str = "", **more: str) -> str:
    """Return a Content-Security-Policy that allows only the inline styles and scripts of a page.

    Args:
        markup: HTML of the page.
        script: Further sources of scripts.
        more: Further directives.
    """
    directives = {
        "default-src": "'none'",
        "script-src": f"{_hashes(markup, 'script')} {script}".rstrip(),
        "style-src": _hashes(markup, "style"),
        "img-src": "data:",
        "base-uri": "'none'",
        "form-action": "'none'",
        **{name.replace("_", "-"): value for name, value in more.items()},
    }
    return "; ".join(f"{name} {value}" for name, value in directives.items())


def _hashes(markup: str, tag: str) -> str:
    contents = re.findall(f"<{tag}(?: type=.module.)?>(.*?)</{tag}>", markup, re.DOTALL)
    digests = (hashlib.sha256(content.encode("utf-8")).digest() for content in contents)
    return " ".join(f"'sha256-{base64.b64encode(digest).decode('ascii')}'" for digest in digests)
