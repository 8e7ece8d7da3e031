"""The store in which Gloo's processes find each other."""

from __future__ import annotations

import http.client
import socket
from contextlib import suppress

import pytest

from crepe_dist.distributed import store as module
from crepe_dist.distributed.store import Store


@pytest.fixture
def store():
    store = Store("127.0.0.1")
    yield store
    store.close()


def ask(store, method, path, body=None):
    """Return status, declared length, and body."""
    connection = http.client.HTTPConnection(store.address, store.port, timeout=10)
    connection.request(method, path, body)
    reply = connection.getresponse()
    content = reply.read()
    connection.close()
    return reply.status, reply.getheader("Content-Length"), content


def test_a_value_is_what_was_put_last_until_the_end(store):
    value = bytes(range(256)) * 4096  # the largest
    assert ask(store, "GET", "/global/0") == (404, "0", b"")
    assert ask(store, "PUT", "/global/0", b"old") == (200, "0", b"")
    assert ask(store, "PUT", "/global/0", value) == (200, "0", b"")
    assert ask(store, "DELETE", "/global/0") == (200, "0", b"")
    assert ask(store, "GET", "/global/0") == (200, str(module.VALUE_LIMIT), value)
    assert ask(store, "GET", "/local/0") == (404, "0", b"")
    store.put("local", "1", b"")
    assert ask(store, "GET", "/local/1") == (200, "0", b"")
    assert store.get("global", "0") == value


@pytest.mark.parametrize(
    "request_",
    [
        b"PUT /a HTTP/1.0\r\nContent-Length: 1\r\n\r\nx",
        b"PUT /a/b HTTP/1.0\r\nContent-Length: 1048577\r\n\r\n",
        b"PUT /a/b HTTP/1.0\r\nContent-Length: 5\r\n\r\nfour",
        b"GET /a/" + b"b" * 100_000 + b" HTTP/1.0\r\n\r\n",
    ],
    ids=lambda request_: str(request_[:40]),
)
def test_a_bad_request_stores_nothing(store, request_):
    with socket.create_connection((store.address, store.port), timeout=10) as client, suppress(OSError):
        client.sendall(request_)
        client.shutdown(socket.SHUT_WR)
        assert not client.recv(20).startswith(b"HTTP/1.0 200")
    assert store.values == {}


def test_a_silent_client_holds_up_nobody_and_is_let_go(store, monkeypatch):
    monkeypatch.setattr(module._Handler, "timeout", 0.3)
    with socket.create_connection((store.address, store.port), timeout=10) as silent:
        assert ask(store, "PUT", "/a/c", b"1")[0] == 200
        assert silent.recv(100) == b""
