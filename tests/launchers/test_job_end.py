"""The last lines of horovodrun, which our build of Horovod takes from here instead of a traceback."""

from __future__ import annotations

import errno
import sys

import pytest

from crepe_dist.distributed.job_end import explained

TRAIN = ["/usr/bin/horovodrun", "-np", "2", "python", "-m", "crepe_dist.train", "--data", "my data"]
AGAIN = "horovodrun -np 2 python -m crepe_dist.train --data 'my data'"


def failed(code: int) -> RuntimeError:
    return RuntimeError(
        "Horovod detected that one or more processes exited with non-zero status, thus causing the job to be "
        f"terminated. The first process to do so was:\nProcess name: 1\nExit code: {code}\n"
    )


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (137, "error: rank 1 was killed (SIGKILL; often for lack of memory)"),
        (139, "error: rank 1 was killed (SIGSEGV)"),
        (76, "error: rank 1 ended with exit code 76"),
        (75, "stopped on request, and saved"),
    ],
)
def test_the_last_line_is_the_command_that_resumes(code, said):
    lines = explained(failed(code), TRAIN).splitlines()
    assert lines[0].startswith(said)
    assert "run the same command again" in "".join(lines)
    assert lines[-1].endswith(AGAIN)


def test_a_mistake_is_explained_above_and_evaluate_resumes_nothing():
    own = [sys.executable if word == "python" else word for word in TRAIN]
    assert "its message above" in explained(failed(1), own)
    assert "resumes" not in explained(failed(137), ["horovodrun", "-np", "2", "python", "-m", "crepe_dist.evaluate"])


def test_a_python_without_crepe_dist_is_replaced_in_the_command(tmp_path):
    elsewhere = tmp_path / "python3"
    elsewhere.symlink_to(sys.executable)
    lines = explained(failed(1), [str(elsewhere) if word == "python" else word for word in TRAIN]).splitlines()
    assert lines[-1].endswith(AGAIN.replace("python", sys.executable, 1))
    assert str(elsewhere) in lines[1]


def test_the_command_that_resumes_is_not_fresh():
    assert explained(failed(137), [*TRAIN, "--fresh"]).splitlines()[-1].endswith(AGAIN)


def test_a_full_disk_is_named_and_other_errors_are_left_alone():
    assert "/dev/shm is full" in explained(OSError(errno.ENOSPC, "No space left on device"), TRAIN)
    for other in (RuntimeError("something else"), OSError(errno.ENOENT, "no such file")):
        with pytest.raises(type(other)):
            explained(other, TRAIN)
