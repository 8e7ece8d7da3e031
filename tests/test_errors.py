"""Every mistake gets a message with the typed value and a remedy; all options of all commands are tried."""

import argparse
import ast
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import crepe_dist.train
from crepe_dist.cli import COMMANDS, build_parser
from crepe_dist.data.char_encoder import CharEncoder
from crepe_dist.errors import UserError
from crepe_dist.files.json_file import read_json
from crepe_dist.preparing.flags import FileOrFraction
from crepe_dist.preparing.preparation import prepare
from crepe_dist.preparing.sources import find_sources
from crepe_dist.preparing.spec import PreparationSpec
from crepe_dist.runs import checkpoint
from crepe_dist.settings import config
from crepe_dist.settings.fields import ANY_TEXT, Choice, PathType, Range, String
from tests.conftest import FEATURE_LEN, QUICK, needs_kernels, write_csv

ROOT = Path(crepe_dist.__file__).parent
OTHERS = [name for name in COMMANDS if name != "train"]
HUGE = "9" * 5000


def outside(limits: Range) -> Iterator[str]:
    yield from ("nan", "inf", "-inf", "1e400", "abc", "", HUGE, "1,5")
    if limits.kind is int:
        yield "1.5"
    step = 1 if limits.kind is int else max(limits.most, 1.0)
    yield str(limits.least if limits.open_below else limits.least - step)
    yield str(limits.most if limits.open_above else limits.most + step)


def refused(action: argparse.Action) -> Iterator[str]:
    """Yield values that an option must refuse."""
    kind = getattr(action.type, "of", action.type)
    if action.nargs == 0:
        yield "x"
    elif isinstance(kind, Choice):
        yield from ("nonsense", "", f"{kind.words[0]}x")
    elif isinstance(kind, Range):
        yield from outside(kind)
    elif kind is not ANY_TEXT:
        yield ""
        if not isinstance(kind, (String, PathType, FileOrFraction)):
            yield "nonsense"


def check(printed: str) -> None:
    what, *more = printed.rstrip("\n").split("\n")
    assert what.startswith("error: "), printed
    assert more, printed
    assert more[-1].startswith("  do:  "), printed
    assert len(more) <= 2, printed
    assert len(printed) < 1000, "longer than anybody reads"


@pytest.fixture
def said(complaint, tmp_path):
    """Return the output of a command that must fail."""

    def of(name: str, *arguments: object, cwd: Path = tmp_path) -> str:
        printed: str = complaint(name, *arguments, cwd=cwd)
        check(printed)
        return printed

    return of


class TestFlags:
    @pytest.mark.parametrize("name", OTHERS)
    def test_every_option_refuses_what_it_cannot_mean(self, name, said):
        for action in build_parser(name)._actions:
            if not action.option_strings or action.dest in ("help", "version"):
                continue
            flag = action.option_strings[-1]
            for value in refused(action):
                assert flag in said(name, f"{flag}={value}"), (flag, value)
            if action.nargs is None:
                assert flag in said(name, flag)

    def test_an_unknown_argument_and_what_is_nearly_an_option(self, said):
        assert "did you mean --version?" in said("predict", "--versoin")
        assert "did you mean --feature-len?" in said("prepare", "--feature-le"), "an abbreviation is none"
        assert "unexpected argument other" in said("predict", "run", "other")
        assert "pass a file with --file" in said("predict", "run", "other")

    def test_the_supervisor_finds_mistakes_of_train_before_it_starts_anything(self, said):
        assert "--epochs is 0" in said("supervise", "-np", 2, "--epochs=0")
        assert "did you mean --epochs?" in said("supervise", "--trainig.epochs=1")
        assert "did you mean --max-restarts?" in said("supervise", "--max-restart=1")


@pytest.fixture(scope="module", autouse=True)
def _one_parser():
    """Build each parser once, because this takes most of the time."""
    with pytest.MonkeyPatch.context() as patch:
        made = config.parser()
        patch.setattr(config, "parser", lambda: made)
        yield


def mistake(*arguments: str) -> str:
    with pytest.raises(UserError) as caught:
        config.parse(arguments)
    check(str(caught.value))
    return str(caught.value)


BAD_FILES = ("absent", "empty", "folder", "dangling", "circle", "picture.params", "n" * 300, "text.txt/x", "/dev/zero")


@pytest.fixture(scope="module")
def place(data, quick_run, tmp_path_factory):
    """Folder with unsuitable files, a run, and prepared data."""
    folder = tmp_path_factory.mktemp("place")
    (folder / "data3").symlink_to(data)
    shutil.copytree(quick_run, folder / "run")
    sources = find_sources([str(write_csv(folder / "other.csv", 100, 0, classes=2))])
    prepare(sources, folder / "data4", PreparationSpec(CharEncoder("keep", FEATURE_LEN)))
    (folder / "empty").touch()
    (folder / "text.txt").write_text("some\ntext\n")
    (folder / "folder").mkdir()
    (folder / "dangling").symlink_to("nowhere/at/all")
    (folder / "circle").symlink_to("circle")
    (folder / "picture.params").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 40)
    return folder


@needs_kernels
@pytest.mark.parametrize("name", BAD_FILES, ids=lambda name: name[:9])
def test_files_that_are_not_what_is_wanted(place, said, name):
    """Each file is passed to every option that reads or writes a file, unless the option accepts it."""
    for arguments in (
        ("train", "--data", name),
        ("train", "--data", "data3", "--init-from", name, *QUICK),
        ("supervise", "--config", name),
        ("predict", name, "--text", "x"),
        ("evaluate", name, "--data", "data3"),
        ("evaluate", "run", "--data", name),
        ("prepare", name, "--out", "new"),
        ("prepare", "other.csv", "--out", "new", "--test", name),
    ):
        if arguments[0] == "supervise" and name == "empty":
            continue  # An empty settings file is valid.
        said(*arguments, cwd=place)
    if name not in ("absent", "empty", "picture.params", "/dev/zero"):
        assert "--json" in said("evaluate", "run", "--data", "data3", "--json", name, cwd=place)
    if name not in ("absent", "folder"):
        said("train", "--data", "data3", "--run-dir", name, *QUICK, cwd=place)
    if name not in ("absent", "dangling"):
        said("prepare", "other.csv", "--out", name, cwd=place)


@needs_kernels
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("evaluate", "run", "--data", "data3", "--split", "validation"), "has no validation split"),
        (("evaluate", "run", "--data", "data3", "--device", "gpu"), "no GPU was found"),
        (("evaluate", "run", "--data", "data4"), "different: encoding and classes"),
        (("train", "--data", "data3", "--run-dir", "run", *QUICK, "--epochs=9"), "training.epochs 2 → 9"),
        (("train", "--data", "data3", *QUICK, "--width=65536"), "too large for this"),
        (("train", "--data", "data3", *QUICK, "--patience=1"), "validation split"),
        (("train", "--data", "data3", *QUICK, "--precision=float16"), "float16"),
    ],
)
def test_what_does_not_go_together(place, said, arguments, message):
    assert message in said(*arguments, cwd=place)


@needs_kernels
def test_a_network_that_overflows(place, said, tmp_path):
    path = checkpoint.resolve_model(str(place / "run"))
    arrays = {name: np.full_like(array, 3e38) for name, array in crepe_dist.load(path).engine.arrays.items()}
    huge = checkpoint.write_checkpoint(tmp_path, arrays, read_json(path.with_suffix(".json")))
    for arguments in (("predict", huge, "--text", "x"), ("evaluate", huge, "--data", "data3")):
        assert "the network returned NaN or infinity" in said(*arguments, cwd=place)


def test_every_error_says_what_to_do():
    without = []
    for path in ROOT.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "UserError":
                starred = any(isinstance(each, ast.Starred) for each in node.args)
                if not starred and len(node.args) < 3 and all(each.arg != "remedy" for each in node.keywords):
                    without.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert not without
