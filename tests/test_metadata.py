"""The repository's metadata is consistent: version, date, URLs, workflows and issue forms."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

import crepe_dist

ROOT = Path(__file__).resolve().parent.parent
GITHUB = ROOT / ".github"


def read(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def test_the_citation_is_of_the_newest_release():
    citation = read(ROOT / "CITATION.cff")
    released = re.search(r"^## (\d\S*) \((\S+)\)$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert released
    assert (citation["version"], str(citation["date-released"])) == released.groups()
    assert citation["version"] == crepe_dist.__version__


def test_one_repository_is_named():
    repository = read(ROOT / "CITATION.cff")["repository-code"]
    urls = re.search(r"\[project\.urls\]\n(.*?)\n\n", (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.DOTALL)
    assert urls
    named = re.findall(r'"(.*)"', urls[1])
    named += [link["url"] for link in read(GITHUB / "ISSUE_TEMPLATE" / "config.yml")["contact_links"]]
    assert len(named) == 5
    assert all(url == repository or url.startswith(f"{repository}/") for url in named)
