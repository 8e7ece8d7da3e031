"""Crash reports hold what a developer asks for, and never hide the failure."""

from __future__ import annotations

import pytest

from crepe_dist import command


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def ended():
    def fail():
        raise ZeroDivisionError("nobody foresaw this")

    with pytest.raises(SystemExit) as end:
        command.run(fail)
    assert end.value.code == 70


def test_a_sentence_in_place_of_the_traceback(place, capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["prepare", "--url", "https://me:word@host/"])
    ended()
    said = capsys.readouterr().err
    assert said.startswith("error: unexpected failure: ZeroDivisionError: nobody foresaw this\n  why: ")
    assert f"the traceback is in {place}/crash-report.txt" in said
    assert "doctor" in said
    assert "Traceback" not in said
    report = (place / "crash-report.txt").read_text()
    assert 'raise ZeroDivisionError("nobody foresaw this")' in report
    assert "https://…@host/" in report
    assert '"numpy": ' in report
