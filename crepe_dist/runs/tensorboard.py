"""Scalars, histograms and pictures for TensorBoard, written immediately and in this thread.

tensorboardX's own ``SummaryWriter`` writes in another thread. That thread ends when the disk is full; its queue then
blocks every caller.
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary
from tensorboardX.summary import histogram

from crepe_dist.runs.trackers import Rows, Tracker

BINS = 60
RGBA = 4  # TensorBoard's code for this colour space


class Events(Tracker):
    """One event file of TensorBoard.

    Args:
        purge_step: first step whose events in earlier files TensorBoard ignores.
    """

    draws = True

    def __init__(self, folder: Path, purge_step: int | None = None) -> None:
        folder.mkdir(exist_ok=True)
        self._writer = EventsWriter(str(folder / "events"))
        if purge_step is not None:
            start = SessionLog(status=SessionLog.START)
            self._writer.write_event(Event(wall_time=time.time(), step=purge_step, session_log=start))

    def add(self, rows: Rows) -> None:
        for step, values in rows:  # one event a step: each takes as long to write as all of them
            self._write(Summary(value=[Summary.Value(tag=name, simple_value=values[name]) for name in values]), step)

    def add_histogram(self, name: str, values: npt.NDArray[np.float32], step: int) -> None:
        """Add a histogram with ``BINS`` equal bins, unless a value is not finite."""
        if values.size and np.isfinite(values).all():
            self._write(histogram(name, values, BINS), step)

    def add_picture(self, name: str, png: bytes, width: int, height: int, step: int) -> None:
        image = Summary.Image(encoded_image_string=png, width=width, height=height, colorspace=RGBA)
        self._write(Summary(value=[Summary.Value(tag=name, image=image)]), step)

    def _write(self, summary: Summary, step: int) -> None:
        self._writer.write_event(Event(wall_time=time.time(), step=step, summary=summary))

    def flush(self) -> None:
        self._writer.flush()
