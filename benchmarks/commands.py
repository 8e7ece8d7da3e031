"""Helpers that run the commands of a benchmark, end them with the benchmark, and limit the time of its sections."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FrameType

TRAIN = (sys.executable, "-m", "crepe_dist.train")
END_SECONDS = 20.0


def call(
    arguments: Sequence[str],
    exit_codes: Sequence[int] = (0,),
    environment: Mapping[str, str] = os.environ,
    seconds: float | None = None,
) -> str:
    """Run a command to its end; return its standard output.

    Raises:
        RuntimeError: it failed, with its last lines; or it was not finished in so many ``seconds``.
    """
    process = subprocess.Popen(
        arguments, stdout=-1, stderr=-1, errors="replace", env=environment, start_new_session=True
    )
    try:
        out, err = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired as error:
        raise RuntimeError(f"not finished in {seconds:.0f} s") from error
    finally:
        if process.poll() is None:
            process.terminate()  # launchers then end their workers
            try:
                process.wait(END_SECONDS)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    if process.returncode not in exit_codes:
        raise RuntimeError(f"exit code {process.returncode}: {' | '.join((out + err).strip().splitlines()[-15:])}")
    return out


class OutOfTime(BaseException):
    """End of the time of a section; not an ``Exception``, so that no section takes it for a failure of its own."""


@contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Raise ``OutOfTime`` in the block if it takes longer."""
    before = signal.signal(signal.SIGALRM, _out_of_time)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.001))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _out_of_time(number: int, frame: FrameType | None) -> None:
    raise OutOfTime
