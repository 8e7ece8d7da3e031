"""Crash reports hold what a developer asks for, and never hide the failure."""

import pytest

from crepe_dist import command_runner


def fail():
    raise ZeroDivisionError("nobody foresaw this")


def test_a_sentence_in_place_of_the_traceback(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["prepare", "--url", "https://me:word@host/"])
    with pytest.raises(SystemExit, match="70"):
        command_runner.run(fail)
    said = capsys.readouterr().err
    assert said.startswith("error: unexpected failure: ZeroDivisionError: nobody foresaw this\n  why: ")
    assert f"the traceback is in {tmp_path}/crash-report.txt" in said
    assert "doctor" in said
    assert "Traceback" not in said
    report = (tmp_path / "crash-report.txt").read_text()
    assert 'raise ZeroDivisionError("nobody foresaw this")' in report
    assert "https://…@host/" in report
    assert '"numpy": ' in report
