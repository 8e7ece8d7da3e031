from __future__ import annotations

import json
import os
import signal
import socket
import threading
import time
from typing import Any

import pytest

import crepe_dist
from crepe_dist.distributed.control import DESCRIPTOR, Control, Stopped, Wish
from crepe_dist.errors import ExitCode
from crepe_dist.settings.config import parse
from tests.conftest import QUICK


@pytest.fixture
def channel(monkeypatch):
    ours, theirs = socket.socketpair()
    monkeypatch.setenv(DESCRIPTOR, str(theirs.detach()))
    with ours:
        yield ours


def wished(control: Control) -> Wish:
    return control.wish


def say(channel, **message):
    channel.sendall(json.dumps(message).encode() + b"\n")


def wait_for(condition):
    due = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < due
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, ExitCode.STOPPED), (signal.SIGINT, ExitCode.INTERRUPTED)]
)
def test_deferred_it_is_a_wish_and_nothing_is_raised(number, code):
    before = signal.getsignal(number)
    with Control() as control:
        with control.deferring():
            assert wished(control) is Wish.GO_ON
            os.kill(os.getpid(), number)
            assert wished(control) is Wish.STOP
        assert control.stopped().code == code
    assert signal.getsignal(number) is before


def test_elsewhere_it_is_raised_at_once_and_handlers_come_back():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Stopped, match="SIGTERM") as raised, Control():
        os.kill(os.getpid(), signal.SIGTERM)
    assert raised.value.code == ExitCode.STOPPED
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_second_ctrl_c_means_now():
    with Control() as control, control.deferring():
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_the_supervisor_asks_and_is_told(channel):
    with Control() as control, control.deferring():
        control.send({"kind": "beat", "step": 3})
        assert json.loads(channel.recv(1000)) == {"kind": "beat", "step": 3}
        channel.sendall(b"no message\n[1]\n{}\n")
        say(channel, kind="stop", why="hostb is back")
        wait_for(lambda: wished(control) is Wish.STOP)
        assert str(control.stopped()) == "hostb is back"


def test_a_supervisor_that_is_gone_means_stop(channel):
    with Control() as control, control.deferring():
        channel.shutdown(socket.SHUT_RDWR)
        wait_for(lambda: wished(control) is Wish.STOP)
        assert "supervisor is gone" in str(control.stopped())


def test_from_python_in_a_thread(data, tmp_path):
    """Signals are the main thread's business; training does not need them."""
    config = parse([*QUICK, "--data", str(data), "--run-dir", str(tmp_path / "run")])
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(crepe_dist.fit(config)))
    thread.start()
    thread.join()
    assert results[0].checkpoint.is_file()
