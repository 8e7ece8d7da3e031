"""The dependency audit distinguishes a clean result from a missing one."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

FILE = Path(__file__).parent.parent / "tools" / "audit.py"
SKIPPED = {"name": "mxnet", "skip_reason": "not found"}
CLEAN = {"name": "numpy", "version": "1", "vulns": []}
WAIVED = {"name": "horovod", "version": "0.28.1", "vulns": [{"id": "PYSEC-1", "aliases": ["CVE-2024-10190"]}]}
BAD = {"name": "x", "version": "2", "vulns": [{"id": "GHSA-1", "aliases": ["CVE-1-1"], "fix_versions": ["3"]}]}


@pytest.fixture
def audit():
    spec = importlib.util.spec_from_file_location("audit", FILE)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("reports", "code", "said"),
    [
        ({"pypi": [CLEAN, WAIVED]}, 0, "CVE-2024-10190 is waived"),
        ({"pypi": [CLEAN]}, 0, "no installed package needs the waiver of CVE-2024-10190"),
        ({"pypi": [CLEAN, BAD, WAIVED]}, 1, "x 2: GHSA-1 = CVE-1-1; fixed in 3"),
        ({"pypi": [SKIPPED], "osv": [CLEAN]}, 0, "1 packages checked with osv"),
        ({"pypi": [SKIPPED, CLEAN]}, 0, "not checked, because pypi does not know them: mxnet"),
        ({"pypi": [SKIPPED], "osv": []}, 3, "NO AUDIT WAS MADE"),
    ],
)
def test_how_it_ends(audit, reports, code, said, monkeypatch, capsys):
    monkeypatch.setattr(audit, "ask", lambda source: (reports[source], "no answer"))
    with pytest.raises(SystemExit) as ended:
        audit.main()
    assert ended.value.code == code
    assert said in capsys.readouterr().out


def test_an_answer_that_is_none_is_told(audit, monkeypatch):
    monkeypatch.setattr(audit.sys, "executable", "/bin/false")
    assert audit.ask("pypi") == ([], "pip-audit ended with 1")
