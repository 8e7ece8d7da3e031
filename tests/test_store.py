"""The store in which Gloo's processes find each other."""

from __future__ import annotations

import contextlib
import http.client
import socket
import threading
import time

import pytest

from crepe_dist.distributed import store as module
from crepe_dist.distributed.store import Rendezvous


@pytest.fixture
def server():
    with Rendezvous("127.0.0.1", {"global": 2}) as server:
        yield server


def ask(server, method, path, body=None):
    """Status, length as declared, and body."""
    connection = http.client.HTTPConnection(server.address, server.port, timeout=10)
    connection.request(method, path, body)
    reply = connection.getresponse()
    content = reply.read()
    connection.close()
    return reply.status, reply.getheader("Content-Length"), content


def raw(server, data):
    with socket.create_connection((server.address, server.port), timeout=10) as client:
        client.sendall(data)
        client.shutdown(socket.SHUT_WR)
        received = b""
        while piece := client.recv(65536):
            received += piece
    return received


def test_a_value_is_what_was_put_last(server):
    value = bytes(range(256))
    assert ask(server, "GET", "/global/0") == (404, "0", b"")
    assert ask(server, "PUT", "/global/0", b"old") == (200, "0", b"")
    assert ask(server, "PUT", "/global/0", value) == (200, "0", b"")
    assert ask(server, "GET", "/global/0") == (200, "256", value)
    assert ask(server, "GET", "/local/0") == (404, "0", b"")
    assert ask(server, "PUT", "/global/1", b"") == (200, "0", b"")
    assert ask(server, "GET", "/global/1") == (200, "0", b"")


def test_a_scope_of_the_group_is_emptied_once_all_have_finished(server):
    ask(server, "PUT", "/global/a", b"1")
    ask(server, "PUT", "/other/a", b"2")
    for _ in range(2):  # the same rank twice is one
        assert ask(server, "DELETE", "/global/0") == (200, "0", b"")
        assert ask(server, "GET", "/global/a")[0] == 200
    ask(server, "DELETE", "/global/1")
    assert ask(server, "GET", "/global/a")[0] == 404
    assert ask(server, "GET", "/other/a")[0] == 200


def test_in_another_scope_the_key_goes(server):
    ask(server, "PUT", "/other/a", b"1")
    ask(server, "PUT", "/other/b", b"2")
    assert ask(server, "DELETE", "/other/a")[0] == 200
    assert ask(server, "DELETE", "/nowhere/a")[0] == 200
    assert (ask(server, "GET", "/other/a")[0], ask(server, "GET", "/other/b")[0]) == (404, 200)


@pytest.mark.parametrize(
    "request_",
    [
        b"GET /global HTTP/1.0\r\n\r\n",
        b"GET /a/b/c HTTP/1.0\r\n\r\n",
        b"GET //b HTTP/1.0\r\n\r\n",
        b"GET /a/ HTTP/1.0\r\n\r\n",
        b"GET /a/" + b"b" * 1100 + b" HTTP/1.0\r\n\r\n",
        b"GET /a/" + b"b" * 100_000 + b" HTTP/1.0\r\n\r\n",
        b"POST /a/b HTTP/1.0\r\nContent-Length: 1\r\n\r\nx",
        b"PUT /a/b HTTP/1.0\r\n\r\n",
        b"PUT /a/b HTTP/1.0\r\nContent-Length: -1\r\n\r\n",
        b"PUT /a/b HTTP/1.0\r\nContent-Length: x\r\n\r\n",
        b"PUT /a/b HTTP/1.0\r\nContent-Length: 1048577\r\n\r\n",
        b"PUT /a/b HTTP/1.0\r\nContent-Length: 5\r\n\r\nfour",
        b"PUT /a/b HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n",
        b"GET /a/b HTTP/9.9\r\n\r\n",
        b"nonsense with many words\r\n\r\n",
    ],
    ids=lambda request_: str(request_[:40]),
)
def test_a_bad_request_gets_400_and_nothing_else(server, request_):
    head, _, body = raw(server, request_).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.0 400 ")
    assert b"Content-Length: 0" in head
    assert body == b""
    assert ask(server, "GET", "/a/b")[0] == 404


def test_the_store_is_bounded(server, monkeypatch):
    monkeypatch.setattr(module, "KEY_LIMIT", 2)
    monkeypatch.setattr(module, "TOTAL_LIMIT", 10)
    assert ask(server, "PUT", "/x/a", b"12345")[0] == 200
    assert ask(server, "PUT", "/y/b", b"123456")[0] == 400
    assert ask(server, "PUT", "/y/b", b"12345")[0] == 200
    assert ask(server, "PUT", "/x/c", b"")[0] == 400
    assert ask(server, "PUT", "/x/a", b"1")[0] == 200  # no other key
    assert ask(server, "DELETE", "/y/b")[0] == 200
    assert ask(server, "PUT", "/x/c", b"123456789")[0] == 200


def test_the_largest_value(server):
    value = b"x" * module.VALUE_LIMIT
    assert ask(server, "PUT", "/a/b", value)[0] == 200
    assert ask(server, "GET", "/a/b")[2] == value


def test_who_says_nothing_holds_up_nobody_and_is_let_go(monkeypatch):
    monkeypatch.setattr(module._Handler, "timeout", 0.3)
    with Rendezvous("127.0.0.1", {}) as server:
        place = (server.address, server.port)
        with socket.create_connection(place, timeout=10) as silent, socket.create_connection(place, timeout=10) as slow:
            slow.sendall(b"PUT /a/b HTTP/1.0\r\nContent-Length: 9\r\n\r\nx")
            assert ask(server, "PUT", "/a/c", b"1")[0] == 200
            assert silent.recv(100) == b""
            assert slow.recv(100).startswith(b"HTTP/1.0 400 ")


def test_closing_waits_for_no_client():
    server = Rendezvous("127.0.0.1", {})
    with socket.create_connection((server.address, server.port), timeout=10):
        time.sleep(0.1)
        closing = threading.Thread(target=server.close)
        closing.start()
        closing.join(module.REQUEST_SECONDS / 2)
        assert not closing.is_alive()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((server.address, server.port), timeout=1)


def test_no_more_connections_than_allowed(monkeypatch):
    monkeypatch.setattr(module, "CONNECTIONS", 2)
    with Rendezvous("127.0.0.1", {}) as server:
        held = [socket.create_connection((server.address, server.port), timeout=10) for _ in range(2)]
        with socket.create_connection((server.address, server.port), timeout=10) as third:
            assert third.recv(1) == b""
        for client in held:
            client.close()
        for _ in range(100):
            with contextlib.suppress(OSError):  # refused before all was sent, or read
                if raw(server, b"GET /a/b HTTP/1.0\r\n\r\n"):
                    return
            time.sleep(0.05)
        pytest.fail("the places were not given back")


def test_many_at_once(server):
    results = []

    def work(rank):
        results.append(ask(server, "PUT", f"/many/{rank}", str(rank).encode())[0])
        results.append(ask(server, "GET", f"/many/{rank}")[2] == str(rank).encode())

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == [1] * 50 + [200] * 50


def test_it_listens_on_the_given_address_alone():
    with Rendezvous("127.0.0.2", {}) as server:
        assert server.address == "127.0.0.2"
        assert ask(server, "GET", "/a/b")[0] == 404
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", server.port), timeout=1)
