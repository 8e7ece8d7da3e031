"""The key-value store in which Gloo's processes find each other: scopes of keys over HTTP, as in Horovod's launcher.

GET /scope/key      200 and the value, or 404 with Content-Length 0 (the client asks again)
PUT /scope/key      200; the body is the value
DELETE /scope/key   200: the rank ``key`` is done with the scope; a store serves one group, so its values stay
"""

from __future__ import annotations

import re
import socketserver
import threading
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

VALUE_LIMIT = 1024 * 1024  # bytes
KEY_LIMIT = 100_000  # keys of all scopes
PATH = re.compile("/[^/]{1,500}/[^/]{1,500}")
REQUEST_SECONDS = 10.0  # limit without a byte from the client
POLL_SECONDS = 0.05  # longest delay of ``close``


class Store(ThreadingHTTPServer):
    """HTTP server of the values of one group of processes, by path."""

    daemon_threads = True
    block_on_close = False  # a silent client must not delay the end
    request_queue_size = 256  # all processes connect at the same moment

    def __init__(self, address: str, port: int = 0) -> None:
        self.values: dict[str, bytes] = {}
        super().__init__((address, port), _Handler)
        self._thread = threading.Thread(target=self.serve_forever, args=(POLL_SECONDS,), daemon=True)
        self._thread.start()

    def get(self, scope: str, key: str) -> bytes | None:
        return self.values.get(f"/{scope}/{key}")

    def put(self, scope: str, key: str, value: bytes) -> None:
        self.values[f"/{scope}/{key}"] = value

    def close(self) -> None:
        self.shutdown()
        self.server_close()
        self._thread.join()

    def server_bind(self) -> None:
        # HTTPServer would look up the name of the address, which may take seconds.
        socketserver.TCPServer.server_bind(self)
        self.address, self.port = str(self.server_address[0]), int(self.server_address[1])

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore clients that break off or time out."""


class _Handler(BaseHTTPRequestHandler):
    timeout = REQUEST_SECONDS
    server: Store

    def do_GET(self) -> None:
        value = self.server.values.get(self.path)
        self._reply(HTTPStatus.NOT_FOUND if value is None else HTTPStatus.OK, value or b"")

    def do_PUT(self) -> None:
        length, values = self.headers.get("Content-Length", ""), self.server.values
        accepted = re.fullmatch("[0-9]{1,8}", length) and int(length) <= VALUE_LIMIT and PATH.fullmatch(self.path)
        if accepted and (self.path in values or len(values) < KEY_LIMIT):
            value = self.rfile.read(int(length))
            if len(value) == int(length):
                values[self.path] = value
                return self._reply(HTTPStatus.OK)
        return self._reply(HTTPStatus.BAD_REQUEST)

    def do_DELETE(self) -> None:
        self._reply(HTTPStatus.OK)

    def _reply(self, status: HTTPStatus, value: bytes = b"") -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(value)))
        self.end_headers()
        self.wfile.write(value)

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing, since clients poll."""
