"""Crash reports are bounded, written once per failure, and never hide it."""

from __future__ import annotations

import errno
import json
import os
import threading
import time

import pytest

from crepe_dist import command
from crepe_dist.distributed import crash_report


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    monkeypatch.setattr(crash_report.tempfile, "tempdir", None)
    (tmp_path / "temporary").mkdir()
    return tmp_path


def fail(text="nobody foresaw this"):
    raise ZeroDivisionError(text)


def ended(main=fail):
    with pytest.raises(SystemExit) as end:
        command.run(main)
    return end.value.code


def test_a_sentence_in_place_of_the_traceback(place, capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["prepare", "--url", "https://me:word@host/", "--api-token=abc"])
    assert ended() == 70
    said = capsys.readouterr().err
    assert said.startswith("error: unexpected failure: ZeroDivisionError: nobody foresaw this\n  why: ")
    assert "the report is in crash-report.json" in said
    assert "doctor" in said
    assert "Traceback" not in said
    report = json.loads((place / "crash-report.json").read_text())
    assert "raise ZeroDivisionError(text)" in report["traceback"]
    assert report["arguments"] == ["prepare", "--url", "https://…@host/", "--api-token=…"]
    assert "MainThread" in report["threads"]


def test_a_developer_sees_the_traceback(capsys, monkeypatch):
    monkeypatch.setenv("CREPE_DIST_TRACEBACK", "1")
    ended()
    assert "raise ZeroDivisionError(text)" in capsys.readouterr().err


def test_the_first_of_a_failure_wins_and_an_older_failure_makes_room(place):
    first = crash_report.write("one", "", 70)
    assert first is not None
    assert crash_report.write("two", "", 70) == first
    assert json.loads(first.read_text())["error"] == "one"
    crash_report.expect(crash_report.Context(since=time.time() + 1))
    assert crash_report.write("three", "", 70) == first
    assert json.loads(first.read_text())["error"] == "three"
    assert [each.name for each in place.glob("crash-report*")] == ["crash-report.json"]


def test_elsewhere_if_the_folder_cannot_be_written(place):
    (place / "crash-report.json").mkdir()
    crash_report.expect(crash_report.Context(folder=place / "gone"))
    written = crash_report.write("one", "", 70)
    assert written is not None
    assert written.parent == place / "temporary"
    assert json.loads(written.read_text())["error"] == "one"
    assert list(place.glob("crash-report-*")) == []


def test_without_room_the_failure_is_told_all_the_same(place, capsys, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(crash_report, "write_text", full)
    assert ended() == 70
    said = capsys.readouterr().err
    assert "raise ZeroDivisionError(text)" in said
    assert "no report could be written" in said


def test_it_does_not_hold_up_the_end(monkeypatch, capsys):
    monkeypatch.setattr(crash_report, "SECONDS", 0.2)
    held = threading.Event()

    def content(*_):
        held.wait(60)
        raise OSError  # the test is over

    monkeypatch.setattr(crash_report, "_content", content)
    began = time.monotonic()
    assert ended() == 70
    assert time.monotonic() - began < 20  # the limit is 0.2 s
    held.set()
    assert "raise ZeroDivisionError(text)" in capsys.readouterr().err


def test_it_is_bounded(place):
    (place / "run" / "stacks").mkdir(parents=True)
    for rank in range(100):
        (place / "run" / "stacks" / f"rank_{rank}.txt").write_text("x" * 100_000)
    (place / "run" / "metrics.jsonl").write_text('{"step": 1}\n' * 100_000)
    config = {f"{n}": "y" * 100_000 for n in range(1000)}

    def main():
        crash_report.expect(crash_report.Context(place / "run", config))
        fail("z" * 10**7)

    ended(main)
    written = place / "run" / "crash-report.json"
    assert written.stat().st_size < 4_000_000
    assert len(json.loads(written.read_text())["last_steps"]) == 20


def test_what_cannot_be_found_out_costs_no_more_than_itself(place, monkeypatch):
    monkeypatch.setattr(crash_report.machine, "describe", fail)
    ended()
    report = json.loads((place / "crash-report.json").read_text())
    assert "not known" in report["machine"]
    assert "LANG" in report["environment"] or report["environment"]
