"""A test that is marked ``alone`` runs beside no other."""

from __future__ import annotations

import threading
import time

import pytest

from tests import turns


@pytest.fixture(autouse=True)
def other_locks(tmp_path, monkeypatch):
    """This test has a turn itself."""
    for name in ("_DOOR", "_ROOM"):
        (tmp_path / name).touch()
        monkeypatch.setattr(turns, name, tmp_path / name)


def take(alone):
    """A thread that waits for a turn, and the event that it has had it."""
    done = threading.Event()

    def wait():
        with turns.turn(alone):
            done.set()

    threading.Thread(target=wait, daemon=True).start()
    return done


def test_usual_tests_run_side_by_side():
    with turns.turn(alone=False):
        assert take(alone=False).wait(20)


@pytest.mark.parametrize(("mine", "theirs"), [(True, True), (True, False), (False, True)])
def test_nothing_runs_beside_one_alone(mine, theirs):
    with turns.turn(mine):
        done = take(theirs)
        assert not done.wait(0.3)
    assert done.wait(20)


def test_later_ones_wait_behind_one_that_waits_to_be_alone():
    with turns.turn(alone=False):
        alone = take(alone=True)
        time.sleep(0.3)
        later = take(alone=False)
        assert not later.wait(0.3)
        assert not alone.is_set()
    assert alone.wait(20)
    assert later.wait(20)
