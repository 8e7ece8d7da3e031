"""The citation is of the newest release."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

import crepe_dist

ROOT = Path(__file__).resolve().parents[2]


def test_the_citation_is_of_the_newest_release():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    released = re.search(r"^## (\d\S*) \((\S+)\)$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert released
    assert (citation["version"], str(citation["date-released"])) == released.groups()
    assert citation["version"] == crepe_dist.__version__
