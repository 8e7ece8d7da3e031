"""Functions that run the commands of a benchmark and limit the time of its sections.

If the benchmark is interrupted, it terminates the running command.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from types import FrameType

from crepe_dist.data.dataset import SAMPLE
from crepe_dist.preparing.open_source import open_source
from crepe_dist.preparing.sources import SAMPLE_FEATURE_LEN, ReadOptions, find_sources

TRAIN = (sys.executable, "-m", "crepe_dist.train")
END_SECONDS = 20.0  # time that a terminated command has before it is killed


def call(
    arguments: Sequence[str],
    exit_codes: Sequence[int] = (0,),
    environment: Mapping[str, str] = os.environ,
    seconds: float | None = None,
) -> str:
    """Run a command to its end, and return its standard output.

    Raises:
        RuntimeError: the command failed, or it did not finish within ``seconds``. If it failed, the message contains
            the last 15 lines of its output.
    """
    process = subprocess.Popen(
        arguments, stdout=-1, stderr=-1, errors="replace", env=environment, start_new_session=True
    )
    try:
        out, err = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired as error:
        raise RuntimeError(f"did not finish within {seconds:.0f} s") from error
    finally:
        if process.poll() is None:
            process.terminate()  # After SIGTERM, a launcher ends its workers.
            try:
                process.wait(END_SECONDS)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    if process.returncode not in exit_codes:
        raise RuntimeError(f"exit code {process.returncode}: {' | '.join((out + err).strip().splitlines()[-15:])}")
    return out


def prepare_sample(out: Path, per_class: int | None) -> Path:
    """Prepare the sample as the data set ``out``.

    Args:
        per_class: number of rows of each class; ``None`` means all rows.
    """
    source = SAMPLE
    if per_class is not None:
        source = f"{out}.jsonl"
        with open(source, "w", encoding="utf-8") as stream:
            for file in find_sources([SAMPLE]):
                for row in islice(open_source(file, ReadOptions()).iter_rows(), per_class):
                    stream.write(json.dumps({"label": file.label, "text": row.text}) + "\n")
    length = str(SAMPLE_FEATURE_LEN)
    call([sys.executable, "-m", "crepe_dist", "prepare", source, "--out", str(out), "--feature-len", length])
    return out


class OutOfTime(BaseException):
    """Exception for the end of a section's time limit.

    It is not derived from ``Exception``, so that the error handling of the section does not catch it.
    """


@contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Raise ``OutOfTime`` in the ``with`` block when ``seconds`` have passed."""
    previous_handler = signal.signal(signal.SIGALRM, _out_of_time)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.001))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous_handler)


def _out_of_time(number: int, frame: FrameType | None) -> None:
    raise OutOfTime
