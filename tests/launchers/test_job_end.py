"""The last lines of horovodrun, which our build of Horovod takes from here instead of a traceback."""

from __future__ import annotations

import pytest

from crepe_dist.distributed.job_end import explained

TRAIN = ["/usr/bin/horovodrun", "-np", "2", "python", "-m", "crepe_dist.train", "--fresh", "--data", "my data"]
AGAIN = "horovodrun -np 2 python -m crepe_dist.train --data 'my data'"


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (137, "error: rank 1 was killed by signal 9"),
        (76, "error: rank 1 ended with exit code 76"),
        (75, "stopped on request, and saved"),
        (1, "error: rank 1 could not continue; its message above"),
    ],
)
def test_a_failed_job_is_explained(code, said):
    failed = RuntimeError(f"The first process to do so was:\nProcess name: 1\nExit code: {code}\n")
    lines = explained(failed, TRAIN).splitlines()
    assert lines[0].startswith(said)
    assert (lines[-1].strip() == AGAIN) == (code != 1)


def test_other_errors_are_left_alone():
    with pytest.raises(OSError, match="no such file"):
        explained(OSError("no such file"), TRAIN)
