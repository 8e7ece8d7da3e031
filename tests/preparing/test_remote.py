"""Sources that are named by URLs: they are downloaded and prepared, and the copies are removed."""

import contextlib
import functools
import gzip
import itertools
import json
import threading
import time
from collections.abc import Iterable
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import fsspec
import pytest
import requests

import crepe_dist
from crepe_dist.errors import UserError
from crepe_dist.preparing import remote
from crepe_dist.preparing.remote import redact_url
from tests.conftest import command, run

DRIP = 0.05  # seconds between two bytes
ROWS = [f"{label},{label} text {number}" for number in range(30) for label in ("good", "bad")]
TABLE = "\n".join(["label,text", *ROWS]).encode()


@pytest.fixture
def memory():
    """Provide an empty file system at memory://."""
    files = fsspec.filesystem("memory")
    yield files
    files.rm("/", recursive=True)


def beside(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_folder_and_files_at_urls_are_prepared_like_local_ones(memory, tmp_path):
    for name in ("local/one/train.csv", "local/two/train.csv", "test.csv"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(TABLE)
        memory.pipe(f"/bucket/{name}", TABLE)
    urls = [f"memory://bucket/local/{name}" for name in ("one/train.csv", "two")]
    report = crepe_dist.prepare(urls, tmp_path / "out", test="memory://bucket/test.csv")
    names = [f"{tmp_path}/local/{name}" for name in ("one/train.csv", "two/train.csv")]
    expected = crepe_dist.prepare(names, tmp_path / "expected", test=tmp_path / "test.csv")
    assert report["splits"] == expected["splits"]
    assert [source["sha256"] for source in report["sources"]] == [each["sha256"] for each in expected["sources"]]
    read = {source["file"] for source in report["sources"]}
    assert read == {"memory/bucket/local/one/train.csv", "memory/bucket/local/two/train.csv", "test.csv"}
    assert beside(tmp_path) == ["expected", "local", "out", "test.csv"]


@pytest.fixture
def website(tmp_path):
    """Provide the address of a web server that has the table train.csv."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "train.csv").write_bytes(TABLE)
    handler = functools.partial(SimpleHTTPRequestHandler, directory=str(tmp_path / "site"))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_a_file_on_the_web(website, tmp_path):
    run(command("prepare", f"{website}/train.csv?signature=secret", "--out", "out"), tmp_path)
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["splits"]["train"]["rows"] + report["splits"]["test"]["rows"] == len(ROWS)
    assert "secret" not in "".join(path.read_text() for path in (tmp_path / "out").glob("*.json"))
    assert "secret" not in (tmp_path / "out" / "report.html").read_text()


def test_what_cannot_be_read_is_explained_without_secrets(memory, tmp_path):
    with pytest.raises(UserError, match=r"memory://bucket/none\.csv does not exist"):
        crepe_dist.prepare("memory://bucket/none.csv", tmp_path / "out")
    with pytest.raises(UserError) as caught:
        crepe_dist.prepare("unheard://me:secret@bucket/x.csv?key=secret", tmp_path / "out")
    assert "secret" not in str(caught.value)
    memory.pipe("/bucket/train.csv", TABLE)
    with pytest.raises(UserError, match="exists"):
        crepe_dist.prepare("memory://bucket/train.csv", tmp_path)
    assert beside(tmp_path) == []


def test_a_name_cannot_leave_the_folder_of_copies(memory, tmp_path, monkeypatch):
    memory.pipe("/bucket/folder/train.csv", TABLE)
    listed = {"/bucket/folder/../../../train.csv": {"size": len(TABLE)}}
    monkeypatch.setattr(type(memory), "find", lambda self, path, **_: listed)
    with pytest.raises(UserError, match=r"contains \.\."):
        crepe_dist.prepare("memory://bucket/folder", tmp_path / "out")
    assert beside(tmp_path) == []


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("s3://bucket/a.csv", "s3://bucket/a.csv"),
        ("https://me:word@host/a.csv?X-Sig=1 --out x", "https://host/a.csv --out x"),
        ("prepare 'https://host/a.csv?sig=1' --validation 0.1", "prepare 'https://host/a.csv' --validation 0.1"),
        ("what? a@b", "what? a@b"),
    ],
)
def test_secrets_of_urls(text, shown):
    assert redact_url(text) == shown


class Liar(BaseHTTPRequestHandler):
    """Provide a server with wrong answers. The first name in the path selects the fault."""

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        kind = self.path.split("/")[1]
        sizes = {"small": len(TABLE) // 2, "large": 2 * len(TABLE), "huge": 10**15}
        redirects = {
            "host": f"http://localhost:{self.server.server_port}/good/x.csv",  # type: ignore[attr-defined]
            "file": "file:///etc/passwd",
            "ftp": "ftp://127.0.0.1/x.csv",
            "loop": self.path,
        }
        if kind == "drip":
            return self._send(iter(lambda: b"x", b""), DRIP)
        self.send_response(302 if kind in redirects else 404 if kind == "none" else 200)
        if kind in redirects:
            self.send_header("Location", redirects[kind])
        if kind in sizes:
            self.send_header("Content-Length", str(sizes[kind]))
        if kind == "packed":  # against the request
            self.send_header("Content-Encoding", "gzip")
        self.end_headers()
        body = gzip.compress(TABLE) if kind == "packed" else TABLE
        drips = kind == "loop"
        dripping = (bytes([byte]) for byte in b"5;" + TABLE * 100)
        pieces = dripping if drips else itertools.repeat(TABLE) if kind == "endless" else [body]
        self._send(pieces, DRIP if drips else 0)

    def _send(self, pieces: Iterable[bytes], pause: float) -> None:
        with contextlib.suppress(OSError):
            for piece in pieces:
                self.wfile.write(piece)
                time.sleep(pause)


@pytest.fixture(scope="module")
def liar():
    with ThreadingHTTPServer(("127.0.0.1", 0), Liar) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("good", None), ("host", None), ("packed", None), ("none", "the server answered 404"),
        ("small", "rows are invalid"),  # by HTTP, the rest is no part of the file
        ("large", "cannot be read"), ("huge", "does not fit on the disk"), ("endless", "does not end"),
        ("file", "redirects to an address of file"), ("ftp", "redirects to an address of ftp"),
        ("loop", "more than 5 consecutive redirects"), ("drip", "did not answer in 2 seconds"),
    ],
)  # fmt: skip
def test_servers_that_lie(liar, tmp_path, monkeypatch, kind, message):
    monkeypatch.setattr(remote, "MAX_BYTES_OF_UNKNOWN_SIZE", 10**6)
    if kind == "drip":
        monkeypatch.setattr(remote, "TIMEOUT_SECONDS", 2)
    if message is None:
        report = crepe_dist.prepare(f"{liar}/{kind}/train.csv", tmp_path / "out")
        assert report["rows"]["read"] == len(ROWS)
        assert beside(tmp_path) == ["out"]
        return
    with pytest.raises(UserError, match=message) as caught:
        crepe_dist.prepare(f"{liar}/{kind}/train.csv", tmp_path / "out")
    assert caught.value.remedy
    assert beside(tmp_path) in ([], ["out.quarantine"])


def test_a_redirect_keeps_tls(tmp_path, monkeypatch):
    """A redirect from https to http is refused before data is read."""
    answer = requests.Response()
    answer.status_code, answer.url = 302, "https://example.org/a.csv"
    answer.headers["Location"] = "http://example.org/a.csv"
    monkeypatch.setattr(requests.Session, "get", lambda self, url, **_: answer)
    monkeypatch.setattr(requests.Response, "close", lambda self: None)
    with pytest.raises(UserError, match="redirects to an address of http"):
        remote.download(answer.url, tmp_path)


@pytest.mark.parametrize(("size", "arrived"), [(10, "more"), (9999, f"{len(TABLE):,}")])
def test_a_store_that_sends_another_size_than_it_said(memory, tmp_path, monkeypatch, size, arrived):
    memory.pipe("/bucket/train.csv", TABLE)
    monkeypatch.setattr(type(memory), "info", lambda self, path, **_: {"size": size, "type": "file"})
    with pytest.raises(UserError, match="has changed or was cut off") as caught:
        crepe_dist.prepare("memory://bucket/train.csv", tmp_path / "out")
    assert f"{size:,} bytes, and {arrived} arrived" in caught.value.why
    assert beside(tmp_path) == []
