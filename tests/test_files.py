"""Safe opening of untrusted files: only regular files of bounded size, and harmless JSON."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from crepe_dist.files import open_regular, read_bytes, read_json, sha256, writing


@pytest.mark.parametrize("read", [open_regular, sha256, read_json, lambda path: read_bytes(path, 10)])
def test_a_pipe_or_device_is_refused_and_not_waited_for(read, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path, kind in ((tmp_path / "pipe", "a pipe"), (Path("/dev/zero"), "a device")):
        with pytest.raises(ValueError, match=kind):
            read(path)
    with pytest.raises(IsADirectoryError):
        read(tmp_path)


def test_a_link_is_followed_only_where_that_is_asked_for(tmp_path):
    (tmp_path / "file").write_text("[1]")
    (tmp_path / "link").symlink_to("file")
    assert read_json(tmp_path / "link") == [1]
    with pytest.raises(ValueError, match="is a symbolic link"):
        read_json(tmp_path / "link", follow=False)
    with pytest.raises(FileNotFoundError):
        sha256(tmp_path / "nothing")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("[" * 100_000, "nested too deeply"),
        ('{"a": 1, "b": {"c": 1, "c": 2}}', "duplicate key 'c'"),
        ("[" + "9" * 401 + "]", "an integer with 401 digits"),
        ('["\\ud800"]', "not UTF-8"),
        ("[1", "not JSON"),
        ("[" + "[]," * 300_000 + "1]", "too many values"),
        ('"' + "x" * 2000 + '"', "longer than 1,000,000 bytes"),
    ],
)
def test_json_that_is_a_trap(text, complaint, tmp_path):
    limit = 1_000_000
    path = tmp_path / "x.json"
    path.write_text(text if "longer" not in complaint else text * 1000)
    with pytest.raises(ValueError, match=complaint) as raised:
        read_json(path, limit)
    assert len(str(raised.value)) < 500


def test_json_that_is_none(tmp_path):
    path = tmp_path / "x.json"
    path.write_bytes(b'"\xff"')
    with pytest.raises(ValueError, match="not UTF-8"):
        read_json(path)
    path.write_text('{"ö": [1e308, NaN, -5, "\\u00e9"]}', encoding="utf-8")
    assert read_json(path)["ö"][3] == "é"


@pytest.mark.parametrize(
    ("error", "named"), [(OSError("2 requested and 1 written"), True), (ConnectionRefusedError(111, "refused"), False)]
)
def test_an_error_of_writing_names_the_file_and_one_of_a_connection_does_not(tmp_path, error, named):
    with pytest.raises(type(error)) as caught, writing(tmp_path / "a"):
        raise error
    assert (caught.value.filename == str(tmp_path / "a")) is named
