"""Downloads from a local server that misbehaves on request."""

from __future__ import annotations

import gzip
import hashlib
import json
import random
import re
import resource
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import requests

from crepe_dist.errors import UserError
from crepe_dist.preparing import file_download as module
from crepe_dist.preparing.download import download
from crepe_dist.preparing.file_download import Progress, redirected

CONTENT = gzip.compress(random.Random(0).randbytes(300_000))
OTHER = gzip.compress(random.Random(1).randbytes(320_000))
TWIN = OTHER[: len(CONTENT)]  # as long as CONTENT
NAME = "a.csv.gz"
DATE = "Tue, 15 Nov 1994 12:45:26 GMT"


@dataclass
class Answer:
    """Answer to one request; ranges are served correctly by default."""

    content: bytes = CONTENT
    status: int = 200
    headers: dict[str, str] = field(default_factory=lambda: {"ETag": '"1"'})
    ranges: bool = True
    if_range: bool = True  # heeded
    length: int | None = None  # the Content-Length that is stated for a whole file
    content_range: str = ""
    cut: int | None = None  # bytes after which the connection is dropped
    reset: bool = False
    stall: bool = False
    chunked: bool = False

    def send(self, handler: BaseHTTPRequestHandler, end: threading.Event) -> None:
        requested = re.fullmatch(r"bytes=(\d+)-", handler.headers.get("Range", ""))
        current = handler.headers.get("If-Range") in self.headers.values() or not self.if_range
        status, start = self.status, 0
        if requested and self.ranges and current and status == 200:
            start = int(requested[1])
            status = 206 if start < len(self.content) else 416
        body = b"" if status == 416 else self.content[start:]
        handler.send_response(status)
        handler.send_header("Connection", "close")
        for header, value in self.headers.items():
            handler.send_header(header, value)
        if status == 206:
            stated = self.content_range or f"bytes {start}-{len(self.content) - 1}/{len(self.content)}"
            handler.send_header("Content-Range", stated)
        if self.chunked:
            handler.send_header("Transfer-Encoding", "chunked")
            body = b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in (body[:1], body[1:])) + b"0\r\n\r\n"
        else:
            length = len(body) if self.length is None or status == 206 else self.length
            handler.send_header("Content-Length", str(length))
        handler.end_headers()
        handler.wfile.write(body[: self.cut])
        if self.stall:
            end.wait(60)
        if self.reset:
            handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


class Server(ThreadingHTTPServer):
    """Answers each path's requests one after the other from ``script``; the last answer is given again and again."""

    daemon_threads = True

    def __init__(self) -> None:
        self.script: dict[str, list[Answer]] = {}
        self.requested: list[tuple[str, dict[str, str]]] = []
        self.end = threading.Event()
        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/files"

    def answers(self, *answers: Answer, name: str = NAME) -> None:
        self.script[f"/files/{name}"] = list(answers)

    def ranges(self) -> list[str | None]:
        return [headers.get("Range") for _, headers in self.requested]

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Says nothing of clients that leave."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def do_GET(self) -> None:
        self.server.requested.append((self.path, dict(self.headers.items())))
        answers = self.server.script[self.path]
        (answers.pop(0) if len(answers) > 1 else answers[0]).send(self, self.server.end)

    def log_message(self, format: str, *args: Any) -> None:
        pass


def serve() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.end.set()
        server.shutdown()
        thread.join()


server = pytest.fixture(serve, name="server")
elsewhere = pytest.fixture(serve, name="elsewhere")


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")


@pytest.fixture
def sleeps(monkeypatch) -> list[float]:
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        assert len(slept) < 50, "no end of attempts"

    monkeypatch.setattr(module.time, "sleep", sleep)
    return slept


def bring(server: Server, folder: Path, *names: str, url: str = "", **options: Any) -> list[Progress]:
    return list(download(url or server.url, names or (NAME,), folder, **{"pause": 0, "attempts": 3, **options}))


def refused(server: Server, folder: Path, *names: str, **options: Any) -> UserError:
    with pytest.raises(UserError) as caught:
        bring(server, folder, *names, **options)
    assert NAME not in listing(folder)
    return caught.value


def listing(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name != ".lock") if folder.exists() else []


def records(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "downloads.json").read_text())


def assert_complete(folder: Path, content: bytes = CONTENT, name: str = NAME) -> None:
    assert (folder / name).read_bytes() == content
    record = records(folder)[name]
    assert (record["bytes"], record["sha256"]) == (len(content), hashlib.sha256(content).hexdigest())
    assert not [file for file in listing(folder) if file not in (*records(folder), "downloads.json")]


def test_files_arrive_with_progress_and_a_record(server, tmp_path):
    folder = tmp_path / "deep" / "folder"
    server.answers(Answer(headers={"ETag": '"1"', "Last-Modified": DATE}))
    server.answers(Answer(b"plain"), name="b.txt")
    progress = bring(server, folder, NAME, "b.txt")
    assert_complete(folder)
    assert_complete(folder, b"plain", "b.txt")
    record = records(folder)[NAME]
    assert (record["url"], record["ETag"], record["Last-Modified"]) == (f"{server.url}/{NAME}", '"1"', DATE)
    of_first = [each.received for each in progress if each.file == NAME]
    assert of_first == sorted(of_first)
    assert len(set(of_first)) > 3
    assert {each.total for each in progress if each.file == NAME} == {len(CONTENT)}
    assert progress[-1] == Progress("b.txt", 5, 5)
    assert all(headers["Accept-Encoding"] == "identity" for _, headers in server.requested)


def test_files_that_are_there_are_checked_and_not_asked_for(server, tmp_path):
    server.answers(Answer())
    bring(server, tmp_path)
    assert bring(server, tmp_path)[-1] == Progress(NAME, len(CONTENT), len(CONTENT))
    assert len(server.requested) == 1


@pytest.mark.parametrize("change", [lambda content: content[:-1] + b"\xff", lambda content: content[:-1]])
def test_an_altered_file_is_an_error(server, tmp_path, change):
    server.answers(Answer())
    bring(server, tmp_path)
    (tmp_path / NAME).write_bytes(change(CONTENT))
    with pytest.raises(UserError, match="was altered") as caught:
        bring(server, tmp_path)
    assert "delete the file" in caught.value.remedy
    assert len(server.requested) == 1


def test_a_file_placed_by_hand_is_taken_and_checked_from_then_on(server, tmp_path):
    (tmp_path / NAME).write_bytes(OTHER)
    bring(server, tmp_path)
    assert_complete(tmp_path, OTHER)
    assert server.requested == []
    (tmp_path / NAME).write_bytes(CONTENT)
    with pytest.raises(UserError, match="was altered"):
        bring(server, tmp_path)


def test_a_deleted_file_comes_again_only_if_it_is_the_recorded_one(server, tmp_path):
    server.answers(Answer())
    bring(server, tmp_path)
    (tmp_path / NAME).unlink()
    bring(server, tmp_path)
    assert_complete(tmp_path)
    (tmp_path / NAME).unlink()
    other = CONTENT[:-1] + b"\xff"
    server.answers(Answer(other))
    error = refused(server, tmp_path)
    assert "has changed since it was recorded" in error.what
    assert "delete its entry" in error.remedy
    assert listing(tmp_path) == ["downloads.json"]
    assert records(tmp_path)[NAME]["sha256"] == hashlib.sha256(CONTENT).hexdigest()
    (tmp_path / "downloads.json").unlink()
    bring(server, tmp_path)
    assert_complete(tmp_path, other)


@pytest.mark.parametrize("text", ["{", "[]", '{"a": 1}', '{"a": {"bytes": 1}}'])
def test_records_that_cannot_be_read_are_an_error(server, tmp_path, text):
    (tmp_path / "downloads.json").write_text(text)
    assert "downloads.json cannot be read" in refused(server, tmp_path).what


class TestCutOff:
    """Connections that end before the file does."""

    @pytest.mark.parametrize("headers", [{"ETag": '"1"'}, {"ETag": 'W/"1"', "Last-Modified": DATE}])
    def test_each_attempt_goes_on_where_the_last_one_ended(self, server, tmp_path, headers):
        server.answers(Answer(headers=headers, cut=70_000))
        bring(server, tmp_path, attempts=1)
        assert_complete(tmp_path)
        assert server.ranges() == [None, *(f"bytes={70_000 * n}-" for n in range(1, 5))]
        assert {sent.get("If-Range") for _, sent in server.requested[1:]} == {list(headers.values())[-1]}

    def test_reset_connections(self, server, tmp_path):
        server.answers(Answer(cut=200_000, reset=True), Answer())
        bring(server, tmp_path)
        assert_complete(tmp_path)
        assert len(server.requested) == 2

    def test_a_stalled_connection(self, server, tmp_path):
        server.answers(Answer(cut=200_000, stall=True), Answer())
        began = time.monotonic()
        bring(server, tmp_path, timeout=0.3)
        assert time.monotonic() - began < 20  # the limit is 0.3 s
        assert_complete(tmp_path)
        assert server.ranges()[1] is not None

    def test_without_a_length_the_total_comes_from_the_second_answer(self, server, tmp_path):
        server.answers(Answer(chunked=True, cut=150_000), Answer())
        progress = bring(server, tmp_path)
        assert_complete(tmp_path)
        assert [progress[0].total, progress[-2].total] == [None, len(CONTENT)]
        assert server.ranges()[1] is not None

    @pytest.mark.parametrize("headers", [{}, {"ETag": 'W/"1"'}])
    def test_without_a_strong_validator_it_begins_anew(self, server, tmp_path, headers):
        server.answers(Answer(headers=headers, cut=70_000), Answer(OTHER, headers=headers))
        bring(server, tmp_path)
        assert_complete(tmp_path, OTHER)
        assert server.ranges() == [None, None]

    @pytest.mark.parametrize(
        "second",
        [
            Answer(TWIN, headers={"ETag": '"2"'}),
            Answer(TWIN, headers={"ETag": '"2"'}, if_range=False),
            Answer(OTHER),  # the ETag stays, the length does not
            Answer(OTHER[:200_000]),
            Answer(TWIN, ranges=False),
            Answer(TWIN, content_range=f"bytes 0-{len(CONTENT) - 1}/{len(CONTENT)}"),
            Answer(TWIN, content_range="bytes"),
            Answer(b"", status=416),
        ],
    )
    def test_what_does_not_continue_the_part_is_never_put_behind_it(self, server, tmp_path, second):
        server.answers(Answer(cut=70_000), second, Answer(TWIN))
        bring(server, tmp_path)
        assert_complete(tmp_path, TWIN)
        assert server.ranges() in ([None, "bytes=70000-"], [None, "bytes=70000-", None])

    def test_a_server_that_gets_no_further_is_given_up(self, server, tmp_path, sleeps):
        server.answers(Answer(cut=70_000, ranges=False))
        error = refused(server, tmp_path, attempts=4, pause=1)
        assert "4 consecutive attempts" in error.why
        assert len(server.requested) == 5
        assert sleeps == [1, 1, 2, 4]

    def test_a_length_that_is_too_large(self, server, tmp_path):
        server.answers(Answer(length=len(CONTENT) + 10), Answer())
        bring(server, tmp_path)
        assert_complete(tmp_path)
        assert server.ranges() == [None, f"bytes={len(CONTENT)}-", None]
        (tmp_path / NAME).unlink()
        server.answers(Answer(length=len(CONTENT) + 10))
        refused(server, tmp_path)

    def test_a_length_that_is_too_small_is_believed(self, server, tmp_path):
        server.answers(Answer(length=len(CONTENT) - 10))
        bring(server, tmp_path)
        assert_complete(tmp_path, CONTENT[:-10])

    def test_less_than_what_was_asked_for(self, server, tmp_path):
        stated = f"bytes 70000-149999/{len(CONTENT)}"
        server.answers(Answer(cut=70_000), Answer(CONTENT[:150_000], content_range=stated), Answer())
        bring(server, tmp_path)
        assert_complete(tmp_path)
        assert server.ranges() == [None, "bytes=70000-", "bytes=150000-"]

    def test_more_than_the_whole(self, server, tmp_path):
        start = 70_000
        stated = f"bytes {start}-{len(CONTENT) - 1}/{len(CONTENT)}"
        server.answers(Answer(cut=start), Answer(CONTENT + b"more", content_range=stated), Answer(OTHER))
        bring(server, tmp_path)
        assert_complete(tmp_path, OTHER)
        assert server.ranges() == [None, f"bytes={start}-", None]


class TestStopped:
    """Downloads that end before the file does, and what the next one makes of the part."""

    @staticmethod
    def stop(server: Server, folder: Path, received: int) -> None:
        progress = download(server.url, [NAME], folder)
        while next(progress).received < received:
            pass
        with pytest.raises(KeyboardInterrupt):
            progress.throw(KeyboardInterrupt)  # type: ignore[attr-defined]

    def test_the_part_is_gone_on_with(self, server, tmp_path):
        server.answers(Answer())
        self.stop(server, tmp_path, 100_000)
        assert listing(tmp_path) == [f"{NAME}.part", f"{NAME}.part.json"]
        size = (tmp_path / f"{NAME}.part").stat().st_size
        progress = bring(server, tmp_path)
        assert_complete(tmp_path)
        assert server.ranges() == [None, f"bytes={size}-"]
        assert progress[0] == Progress(NAME, size, len(CONTENT))

    def test_a_whole_part_only_needs_its_name(self, server, tmp_path):
        server.answers(Answer())
        self.stop(server, tmp_path, len(CONTENT))
        assert NAME not in listing(tmp_path)
        bring(server, tmp_path)
        assert_complete(tmp_path)
        assert len(server.requested) == 1

    def test_stopped_while_the_part_is_read_it_is_kept(self, server, tmp_path, monkeypatch):
        def interrupted(path: Path) -> Iterator[bytes]:
            raise KeyboardInterrupt

        server.answers(Answer())
        self.stop(server, tmp_path, 100_000)
        before = (tmp_path / f"{NAME}.part").read_bytes()
        monkeypatch.setattr(module, "blocks", interrupted)
        with pytest.raises(KeyboardInterrupt):
            bring(server, tmp_path)
        assert (tmp_path / f"{NAME}.part").read_bytes() == before

    @pytest.mark.parametrize("about", [None, "{", "[1]", "{}"])
    def test_a_part_without_its_description_is_worth_nothing(self, server, tmp_path, about):
        server.answers(Answer())
        (tmp_path / f"{NAME}.part").write_bytes(OTHER[:1000])
        if about is not None:
            (tmp_path / f"{NAME}.part.json").write_text(about)
        bring(server, tmp_path)
        assert_complete(tmp_path)
        assert server.ranges() == [None]

    def test_nor_is_one_that_is_too_long(self, server, tmp_path):
        server.answers(Answer())
        self.stop(server, tmp_path, 100_000)
        (tmp_path / f"{NAME}.part").write_bytes(CONTENT + b"more")
        bring(server, tmp_path)
        assert_complete(tmp_path)
        assert server.ranges() == [None, None]

    def test_nor_one_from_another_address(self, server, tmp_path):
        server.answers(Answer())
        self.stop(server, tmp_path, 100_000)
        server.script[f"/mirror/{NAME}"] = [Answer(TWIN)]
        bring(server, tmp_path, url=server.url.replace("files", "mirror/"))
        assert_complete(tmp_path, TWIN)
        assert server.ranges() == [None, None]

    def test_a_disk_that_takes_no_more(self, server, tmp_path):
        server.answers(Answer())
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
        try:
            error = refused(server, tmp_path)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert "File too large" in error.why
        assert "to resume" in error.remedy
        size = (tmp_path / f"{NAME}.part").stat().st_size
        assert size > 0
        bring(server, tmp_path)
        assert_complete(tmp_path)
        assert server.ranges() == [None, f"bytes={size}-"]


class TestRefused:
    """Downloads that fail: permanent errors, and errors that retries do not fix."""

    @pytest.mark.parametrize("status", [401, 403, 404, 410, 304, 206])
    def test_other_answers(self, server, tmp_path, status):
        server.answers(Answer(b"x", status=status))
        assert f"the server answered {status}" in refused(server, tmp_path).why
        assert len(server.requested) == 1
        assert listing(tmp_path) == []

    @pytest.mark.parametrize("chunked", [False, True])
    def test_a_page_in_place_of_the_file(self, server, tmp_path, chunked):
        page = b"<html>\x1b[2J" + b"x" * 300_000
        server.answers(Answer(page, headers={"Content-Type": "text/html", "ETag": '"1"'}, chunked=chunked))
        error = refused(server, tmp_path)
        assert "is not a gzip file" in error.what
        assert "'text/html'" in error.why
        assert r"b'<html>\x1b[2Jxx" in error.why
        assert len(error.why) < 200
        assert len(server.requested) == 1
        assert listing(tmp_path) == []

    @pytest.mark.parametrize("content", [b"", b"\x1f"])
    def test_less_than_the_beginning_of_a_file(self, server, tmp_path, content):
        server.answers(Answer(content))
        assert "is not a gzip file" in refused(server, tmp_path).what

    def test_any_content_under_other_names(self, server, tmp_path):
        server.answers(Answer(b""), name="empty.txt")
        assert bring(server, tmp_path, "empty.txt")[-1] == Progress("empty.txt", 0, 0)
        assert_complete(tmp_path, b"", "empty.txt")

    def test_gzip_is_not_unpacked(self, server, tmp_path):
        server.answers(Answer(headers={"Content-Encoding": "gzip"}))
        bring(server, tmp_path)
        assert_complete(tmp_path)

    @pytest.mark.parametrize(
        ("headers", "waited"),
        [
            ({"Retry-After": "0"}, 1),
            ({"Retry-After": "7"}, 7),
            ({"Retry-After": "3600"}, 60),
            ({"Retry-After": DATE}, 1),
            ({}, 1),
        ],
    )
    @pytest.mark.parametrize("status", [503, 429])
    def test_a_busy_server(self, server, tmp_path, sleeps, status, headers, waited):
        server.answers(Answer(b"busy", status=status, headers=headers), Answer())
        bring(server, tmp_path, pause=1)
        assert_complete(tmp_path)
        assert sleeps == [waited]

    def test_a_server_that_stays_busy(self, server, tmp_path, sleeps):
        server.answers(Answer(cut=70_000), Answer(status=500))
        error = refused(server, tmp_path, pause=1, attempts=8)
        assert error.why == "the server answered 500 Internal Server Error (8 consecutive attempts made no progress)"
        assert error.remedy == f"70000 bytes are kept in {tmp_path / NAME}.part; run the same command again to resume"
        assert sleeps == [1, 1, 2, 4, 8, 16, 30, 30]
        server.answers(Answer())
        bring(server, tmp_path)
        assert_complete(tmp_path)
        assert server.ranges()[-1] == "bytes=70000-"

    def test_no_server_at_all(self, tmp_path, sleeps):
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        with pytest.raises(UserError, match="could not be downloaded") as caught:
            list(download(f"http://127.0.0.1:{port}", [NAME], tmp_path, attempts=3))
        assert "Connection refused" in caught.value.why
        assert "Max retries" not in caught.value.why
        assert "to start over" in caught.value.remedy
        assert len(sleeps) == 2
        assert listing(tmp_path) == []

    def test_a_bad_certificate_is_not_tried_again(self, server, tmp_path, sleeps, monkeypatch):
        def get(*_: Any, **__: Any) -> None:
            raise requests.exceptions.SSLError("[SSL: CERTIFICATE_VERIFY_FAILED] self signed certificate")

        monkeypatch.setattr(requests.Session, "get", get)
        assert "cannot be trusted" in refused(server, tmp_path).what
        assert sleeps == []

    @pytest.mark.parametrize(
        "name", ["", ".", "..", "../a.gz", "a/b.gz", "/etc/passwd", ".lock", "downloads.json", "a.part", "a\0", "a?b"]
    )
    def test_names(self, server, tmp_path, name):
        folder = tmp_path / "folder"
        with pytest.raises(UserError, match="cannot be downloaded"):
            list(download(server.url, [NAME, name], folder, attempts=1))
        assert server.requested == []
        assert listing(tmp_path) == []

    @pytest.mark.parametrize(
        "url",
        [
            "ftp://host/a",
            "file:///etc",
            "host/a",
            "",
            "http://",
            "http://h:port",
            "http://u:p@h/",
            "http://h/?a",
            "http://[",
        ],
    )
    def test_addresses(self, tmp_path, url):
        with pytest.raises(UserError, match="not an address to download from"):
            list(download(url, [NAME], tmp_path, attempts=1))

    def test_an_address_that_requests_refuses(self, tmp_path, sleeps):
        with pytest.raises(UserError, match="cannot be requested"):
            list(download("http://.host", [NAME], tmp_path))
        assert sleeps == []

    def test_a_second_process_in_the_same_folder(self, server, tmp_path):
        server.answers(Answer())
        hold = (
            "import fcntl, sys; fcntl.flock(lock := open(sys.argv[1], 'w'), fcntl.LOCK_EX); print(flush=True); input()"
        )
        with subprocess.Popen(
            [sys.executable, "-c", hold, str(tmp_path / ".lock")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as other:
            assert other.stdout is not None
            other.stdout.readline()
            assert "another process is downloading" in refused(server, tmp_path).what
            other.communicate(b"\n")
        assert server.requested == []
        bring(server, tmp_path)
        assert_complete(tmp_path)

    def test_the_folder_is_kept_until_the_end(self, server, tmp_path):
        server.answers(Answer())
        first = download(server.url, [NAME], tmp_path)
        next(first)
        assert "another process is downloading" in refused(server, tmp_path).what
        list(first)
        bring(server, tmp_path)


class TestRedirects:
    @staticmethod
    def to(location: str, status: int = 302) -> Answer:
        return Answer(b"moved", status=status, headers={"Location": location})

    @pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
    def test_on_the_same_server(self, server, tmp_path, status):
        server.answers(self.to("/there/file", status))
        server.script["/there/file"] = [Answer(cut=200_000)]
        bring(server, tmp_path)
        assert_complete(tmp_path)
        assert server.ranges() == [None, None, "bytes=200000-", "bytes=200000-"]

    @pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
    def test_to_elsewhere(self, server, elsewhere, tmp_path, host):
        target = f"http://{host}:{elsewhere.server_port}/files/{NAME}"
        elsewhere.answers(Answer())
        server.answers(self.to(target))
        error = refused(server, tmp_path)
        assert error.what == f"{server.url}/{NAME} redirects to {target}"
        assert "--url" in error.remedy
        assert elsewhere.requested == []
        assert len(server.requested) == 1

    def test_in_a_circle(self, server, tmp_path):
        server.answers(self.to(NAME))
        assert "more than 5 consecutive redirects" in refused(server, tmp_path).why
        assert len(server.requested) == 6

    @pytest.mark.parametrize(
        ("url", "location", "target"),
        [
            ("http://host/a/b", "c", "http://host/a/c"),
            ("http://host/a/b", "http://HOST:80/c", "http://HOST:80/c"),
            ("http://host/a", "https://host/b", "https://host/b"),
            ("https://host:8443/a", "//host:8443/b", "https://host:8443/b"),
        ],
    )
    def test_places_that_are_the_same(self, url, location, target):
        assert redirected(url, location) == target

    @pytest.mark.parametrize(
        ("url", "location"),
        [
            ("https://host/a", "http://host/a"),
            ("https://host/a", "http://host:443/a"),
            ("http://host:8000/a", "https://host/a"),
            ("http://host/a", "https://host:8443/a"),
            ("http://host/a", "//host.elsewhere/a"),
            ("http://host/a", "http://host@elsewhere/a"),
            ("http://host/a", "file:///etc/passwd"),
            ("http://host/a", "http://host:port/a"),
            ("http://host/a", "http://[/a"),
        ],
    )
    def test_places_that_are_not(self, url, location):
        with pytest.raises(UserError, match="redirects to"):
            redirected(url, location)
