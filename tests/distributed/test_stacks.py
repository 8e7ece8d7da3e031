"""Stacks that other processes ask for."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
import time

BODY = """
    import signal, sys, threading, time
    from crepe_dist.distributed.stacks import StackRequests

    def deep(n):
        return 0 if n == 0 else 1 + deep(n - 1)

    def busy():
        while True:
            deep(50)

    requests = StackRequests(open(sys.argv[1], "w"))
    for _ in range(int(sys.argv[2])):
        threading.Thread(target=busy, daemon=True).start()
    print("ready", flush=True)
    if sys.argv[2] == "0":
        time.sleep(60)
    busy()
"""


def start(path, threads):
    arguments = [sys.executable, "-c", textwrap.dedent(BODY), str(path), str(threads)]
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def test_a_busy_process_survives_many_requests(tmp_path):
    with start(tmp_path / "stacks", 3) as process:
        for _ in range(300):
            process.send_signal(signal.SIGUSR1)
            time.sleep(0.001)
        assert process.poll() is None
        process.kill()
    assert "in deep" in (tmp_path / "stacks").read_text()


def test_a_process_that_waits_is_seen_waiting(tmp_path):
    with start(tmp_path / "stacks", 0) as process:
        process.send_signal(signal.SIGUSR1)
        until = time.monotonic() + 30
        while "in <module>" not in (tmp_path / "stacks").read_text() and time.monotonic() < until:
            time.sleep(0.05)
        assert process.poll() is None
        process.kill()
    assert "in <module>" in (tmp_path / "stacks").read_text()
