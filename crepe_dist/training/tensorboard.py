"""Scalars for TensorBoard, written at once and in this thread.

tensorboardX's own ``SummaryWriter`` writes in another thread, which ends when the disk is full; its queue then blocks
whoever adds to it.
"""

from __future__ import annotations

import time
from pathlib import Path

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.summary import scalar


class Events:
    """One event file.

    Args:
        folder: made if need be.
        purge_step: what earlier files hold from this step on is undone, if given.

    Raises:
        OSError: from every method, where the disk has no room.
    """

    def __init__(self, folder: Path, purge_step: int | None = None) -> None:
        folder.mkdir(exist_ok=True)
        self._writer = EventsWriter(str(folder / "events"))
        if purge_step is not None:
            start = SessionLog(status=SessionLog.START)
            self._writer.write_event(Event(wall_time=time.time(), step=purge_step, session_log=start))

    def add(self, name: str, value: float, step: int) -> None:
        self._writer.write_event(Event(wall_time=time.time(), step=step, summary=scalar(name, value)))

    def flush(self) -> None:
        self._writer.flush()
