"""Turns of pytest's workers: a test marked ``alone`` waits until no other test runs, and later tests wait for it."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# Files that are there anyway; only their locks are used.
_DOOR, _ROOM = Path(__file__).with_name("__init__.py"), Path(__file__)


@contextmanager
def turn(alone: bool) -> Iterator[None]:
    """Wait for a turn, and hold it. If ``alone`` is true, no other test runs during the turn."""
    with _ROOM.open() as room:
        with _DOOR.open() as door:
            fcntl.flock(
                door, fcntl.LOCK_EX
            )  # A test that waits to be alone keeps the door locked, so that no new test starts.
            fcntl.flock(room, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
            fcntl.flock(door, fcntl.LOCK_UN)
        try:
            yield
        finally:
            fcntl.flock(room, fcntl.LOCK_UN)  # Closing the file is not enough, because forked processes share the lock.
