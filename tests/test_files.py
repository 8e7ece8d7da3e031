"""Safe opening of untrusted files: only regular files of bounded size, and harmless JSON; and writing by links."""

import os
import stat
import sys
from pathlib import Path

import pytest

from crepe_dist.errors import UserError
from crepe_dist.files.atomic_write import name_path_in_errors, write_text
from crepe_dist.files.json_file import read_json, write_json
from crepe_dist.files.safe_read import open_regular, read_bytes, sha256
from crepe_dist.settings.flags import check_output


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
    with pytest.raises(type(error)) as caught, name_path_in_errors(tmp_path / "a"):
        raise error
    assert (caught.value.filename == str(tmp_path / "a")) is named


def test_a_link_that_the_user_gives_is_followed_and_one_in_a_folder_is_replaced(tmp_path):
    (tmp_path / "far").mkdir()
    (tmp_path / "far" / "target").write_text("old")
    (tmp_path / "far" / "near").symlink_to("target")
    (tmp_path / "link").symlink_to("far/near")
    inode = (tmp_path / "far" / "target").stat().st_ino
    write_json(tmp_path / "link", 1, follow=True)
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "far" / "near").is_symlink()
    assert (tmp_path / "far" / "target").read_text() == "1\n"
    # A reader of the old file never sees a part of the new file.
    assert (tmp_path / "far" / "target").stat().st_ino != inode
    (tmp_path / "dangling").symlink_to("far/new")
    write_text(tmp_path / "dangling", "new", follow=True)
    assert (tmp_path / "far" / "new").read_text() == "new"
    write_text(tmp_path / "link", "replaced")
    assert not (tmp_path / "link").is_symlink()
    assert (tmp_path / "far" / "target").read_text() == "1\n"
    assert sorted(os.listdir(tmp_path / "far")) == ["near", "new", "target"]


def test_an_error_leaves_the_target_of_a_link_as_it_was(tmp_path):
    (tmp_path / "target").write_text("old")
    (tmp_path / "link").symlink_to("target")
    with pytest.raises(UnicodeEncodeError):
        write_text(tmp_path / "link", "\ud800", follow=True)
    assert (tmp_path / "target").read_text() == "old"
    assert sorted(os.listdir(tmp_path)) == ["link", "target"]


def test_a_pipe_is_written_to_also_by_a_link(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    for name in ("pipe", "link"):
        check_output(tmp_path / name, "--json")
        reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
        write_json(tmp_path / name, [1], follow=True)
        assert os.read(reader, 100) == b"[\n  1\n]\n"
        os.close(reader)
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)


def test_a_device_is_written_to_and_a_disk_is_refused(tmp_path):
    try:
        os.mknod(tmp_path / "null", 0o600 | stat.S_IFCHR, os.makedev(1, 3))
        os.mknod(tmp_path / "disk", 0o600 | stat.S_IFBLK, os.makedev(240, 200))  # which no driver has
    except PermissionError:
        pytest.skip("only root makes devices")
    (tmp_path / "link").symlink_to("null")
    for name in ("null", "link"):
        check_output(tmp_path / name, "--json")
        write_json(tmp_path / name, 1, follow=True)
    assert stat.S_ISCHR((tmp_path / "null").stat().st_mode)
    assert (tmp_path / "link").is_symlink()
    with pytest.raises(UserError, match="it is not a file"):
        check_output(tmp_path / "disk", "--json")


def test_an_open_file_of_the_process_is_continued(tmp_path):
    """As for `command --json /dev/stdout > file`. A link to the open file is not replaced."""
    with (tmp_path / "file").open("w") as stream:
        stream.write("before\n")
        stream.flush()
        (tmp_path / "link").symlink_to(f"/proc/self/fd/{stream.fileno()}")
        for name in (f"/dev/fd/{stream.fileno()}", str(tmp_path / "link")):
            check_output(Path(name), "--json")
            write_json(Path(name), 1, follow=True)
        stream.write("after\n")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "file").read_text() == "before\n1\n1\nafter\n"


def test_an_open_file_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with (tmp_path / "file").open() as stream:
        number = stream.fileno()
        with pytest.raises(UserError, match="it is open for reading only"):
            check_output(Path(f"/dev/fd/{number}"), "--json")
    with pytest.raises(UserError, match="Bad file descriptor"):
        check_output(Path(f"/dev/fd/{number}"), "--json")


def test_standard_output_gets_the_file_after_what_was_printed(tmp_path, monkeypatch):
    with (tmp_path / "file").open("w") as stream:
        (tmp_path / "out").symlink_to(f"/dev/fd/{stream.fileno()}")
        monkeypatch.setattr(sys, "stdout", stream)
        print("before")
        write_text(tmp_path / "out", "text\n", follow=True)
        print("after")
    assert (tmp_path / "file").read_text() == "before\ntext\nafter\n"
    assert (tmp_path / "out").is_symlink()
