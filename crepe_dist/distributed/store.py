"""The key-value store in which Gloo's processes find each other: scopes of keys over HTTP, as in Horovod's launcher.

GET /scope/key      200 and the value, or 404 with Content-Length 0 (the client asks again)
PUT /scope/key      200; the body is the value
DELETE /scope/key   200; in a scope of the group, notes that rank ``key`` is done, and empties the scope once all are;
                    in any other scope, removes the key
"""

from __future__ import annotations

import socket
import socketserver
import threading
from collections.abc import Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any

VALUE_LIMIT = 1024 * 1024  # bytes
TOTAL_LIMIT = 256 * 1024 * 1024  # bytes of all values
KEY_LIMIT = 100_000  # keys of all scopes
PATH_LIMIT = 1024  # bytes
REQUEST_SECONDS = 10.0  # limit without a byte from the client
CONNECTIONS = 1024
LINGER_SECONDS = 1.0  # time to read what a client still sends after its answer
LINGER_BYTES = 1024 * 1024
POLL_SECONDS = 0.05  # longest delay of ``close``


class Store:
    """Thread-safe values by scope and key.

    Args:
        scopes: name and number of processes of each scope of the group.
    """

    def __init__(self, scopes: Mapping[str, int]) -> None:
        self._sizes = dict(scopes)
        self._values: dict[tuple[str, str], bytes] = {}
        self._bytes = 0
        self._finished: dict[str, set[str]] = {}
        self._lock = threading.Lock()

    def expect(self, scopes: Mapping[str, int]) -> None:
        """Register further scopes of this group."""
        with self._lock:
            self._sizes.update(scopes)

    def get(self, scope: str, key: str) -> bytes | None:
        with self._lock:
            return self._values.get((scope, key))

    def put(self, scope: str, key: str, value: bytes) -> bool:
        """Store a value; return false if a limit is reached."""
        with self._lock:
            old = self._values.get((scope, key))
            total = self._bytes + len(value) - len(old or b"")
            if total > TOTAL_LIMIT or (old is None and len(self._values) >= KEY_LIMIT):
                return False
            self._values[scope, key] = value
            self._bytes = total
            return True

    def delete(self, scope: str, key: str) -> None:
        with self._lock:
            if scope not in self._sizes:
                self._drop((scope, key))
                return
            finished = self._finished.setdefault(scope, set())
            if len(finished) < self._sizes[scope]:
                finished.add(key)
            if len(finished) >= self._sizes[scope]:
                for each in [each for each in self._values if each[0] == scope]:
                    self._drop(each)
                finished.clear()

    def _drop(self, place: tuple[str, str]) -> None:
        self._bytes -= len(self._values.pop(place, b""))


class _Handler(BaseHTTPRequestHandler):
    timeout = REQUEST_SECONDS
    server_version = "rendezvous"
    sys_version = ""
    server: _Server

    def do_GET(self) -> None:
        place = self._place()
        if place is not None:
            value = self.server.store.get(*place)
            self._reply(HTTPStatus.NOT_FOUND if value is None else HTTPStatus.OK, value or b"")

    def do_PUT(self) -> None:
        place = self._place()
        if place is None:
            return
        length = self.headers.get("Content-Length", "")
        if not (length.isascii() and length.isdigit() and len(length) < 9 and int(length) <= VALUE_LIMIT):
            return self._reply(HTTPStatus.BAD_REQUEST)
        try:
            value = self.rfile.read(int(length))
        except OSError:
            return self._reply(HTTPStatus.BAD_REQUEST)
        whole = len(value) == int(length)
        self._reply(HTTPStatus.OK if whole and self.server.store.put(*place, value) else HTTPStatus.BAD_REQUEST)

    def do_DELETE(self) -> None:
        place = self._place()
        if place is not None:
            self.server.store.delete(*place)
            self._reply(HTTPStatus.OK)

    def _place(self) -> tuple[str, str] | None:
        """Parse scope and key from the path; answer the request if it has none."""
        parts = self.path.split("/")
        if len(self.path) <= PATH_LIMIT and len(parts) == 3 and not parts[0] and parts[1] and parts[2]:
            return parts[1], parts[2]
        self._reply(HTTPStatus.BAD_REQUEST)
        return None

    def _reply(self, status: HTTPStatus, value: bytes = b"") -> None:
        self.close_connection = True
        try:
            self.send_response(status)
            self.send_header("Content-Length", str(len(value)))
            self.end_headers()
            self.wfile.write(value)
        except OSError:
            pass  # the client has left

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Answer a malformed request or an unknown method."""
        self.request_version = "HTTP/1.0"  # otherwise taken for 0.9, which has no status line
        self._reply(HTTPStatus.BAD_REQUEST)

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing, since clients poll."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False  # a silent client must not delay the end
    request_queue_size = 256  # all processes connect at the same moment

    def __init__(self, address: str, port: int, store: Store) -> None:
        self.store = store
        self._places = threading.BoundedSemaphore(CONNECTIONS)
        super().__init__((address, port), _Handler)

    def server_bind(self) -> None:
        # HTTPServer would look up the name of the address, which may take seconds.
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._places.acquire(blocking=False):
            self.close_request(request)
            return
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """Read what is left first: closing on unread bytes resets the connection, and the answer is lost."""
        try:
            request.shutdown(socket.SHUT_WR)
            request.settimeout(LINGER_SECONDS)
            left = LINGER_BYTES
            while left > 0 and (piece := request.recv(65536)):
                left -= len(piece)
        except OSError:
            pass  # the client has left
        self.close_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._places.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore clients that break off or time out."""


class Rendezvous:
    """HTTP server of the store of one group of processes; a context manager.

    Args:
        address: IPv4 address to bind to.
        scopes: name and number of processes of each scope of the group.
        port: port to bind to; 0: any free one.

    Raises:
        OSError: the address or port is not available.
    """

    def __init__(self, address: str, scopes: Mapping[str, int], port: int = 0) -> None:
        self.store = Store(scopes)
        self._server = _Server(address, port, self.store)
        self.address = address
        self.port = int(self._server.server_port)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(POLL_SECONDS,), daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def __enter__(self) -> Rendezvous:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
