"""Tests of the console command `crepe`."""

import importlib
import re
import sys
from pathlib import Path

import pytest

import crepe_dist
from crepe_dist import cli
from crepe_dist.settings.flags import Command
from tests.conftest import launch_prefix, run
from tests.helpers.programs import program

CREPE = str(Path(sys.executable).with_name("crepe"))
PACKAGE = Path(crepe_dist.__path__[0])
# Modules that --help must not import, because they are slow.
HEAVY = {"fastapi", "horovod", "matplotlib", "mxnet", "onnx", "onnxruntime", "pandas", "pyarrow", "uvicorn"}


def test_every_command_is_listed_and_no_other(tmp_path):
    names = ["train", *(f"commands.{path.stem}" for path in PACKAGE.glob("commands/[!_]*.py"))]
    modules = [importlib.import_module(f"crepe_dist.{name}") for name in names]
    classes = [each for module in modules for each in vars(module).values() if isinstance(each, type)]
    found = {each.__name__.lower() for each in classes if issubclass(each, Command) and hasattr(each, "usage")}
    assert set(cli.COMMANDS) == found | {"train"}
    printed = run([CREPE, "--help"], tmp_path)
    assert printed.startswith("usage: crepe COMMAND [options]\n")
    assert re.findall(r"^  (\w+) +\w", printed.partition("\noptions:")[0], re.M) == list(cli.COMMANDS)
    assert run([sys.executable, "-m", "crepe_dist"], tmp_path) == printed.replace(
        "crepe COMMAND", "python -m crepe_dist COMMAND"
    )


def test_a_typo_is_answered_with_the_near_name(tmp_path):
    printed = run([CREPE, "trian", "--epochs", "3"], tmp_path, code=1)
    assert printed == "error: there is no command trian\n  do:  did you mean train?\n"
    assert "give one of prepare, inspect," in run([CREPE, "zzz"], tmp_path, code=1)


def test_horovodrun_starts_it_and_passes_the_data_folder_on(tmp_path):
    printed = run([*launch_prefix(2), CREPE, "train", "nowhere"], tmp_path, code=1)
    assert re.search(r"\[[01]\]<stderr>:error: nowhere is not a prepared data set", printed)


@pytest.mark.parametrize(
    ("start", "prog"),
    [
        ([CREPE, "train"], "crepe train"),
        ([sys.executable, "-m", "crepe_dist", "train"], "python -m crepe_dist train"),
        ([sys.executable, "-m", "crepe_dist.train"], "python -m crepe_dist train"),
    ],
)
def test_help_speaks_of_the_command_as_it_was_called(start, prog, tmp_path):
    printed = run([*start, "--help"], tmp_path)
    assert printed.startswith(f"usage: {prog} ")
    examples = printed.split("examples:\n")[1].splitlines()
    assert examples[0].startswith(f"  {prog} ")
    assert examples[1].startswith(f"  horovodrun -np 2 {prog} ")
    assert f"{prog} --help lists the options" in run([*start, "--model.zzzzzz=3"], tmp_path, code=1)


@pytest.mark.parametrize("uv", [{}, {"UV": "/usr/bin/uv"}])
def test_remedies_name_commands_as_the_user_would_type_them(uv, tmp_path, monkeypatch):
    for name, value in uv.items():
        monkeypatch.setenv(name, value)
    said = run([CREPE, "predict"], tmp_path, code=1)
    assert f"do:  train one ({'uv run ' * bool(uv)}crepe train)" in said


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_each_command_gives_its_own_help_and_waits_for_nothing_else(name, tmp_path):
    line = program("commands/print_imports.py", name, "--help")
    printed, _, imported = run(line, tmp_path).partition("imported: ")
    assert printed.startswith(f"usage: crepe {name} ")
    assert not HEAVY & set(imported.split())
    others = {f"crepe_dist.commands.{other}" for other in cli.COMMANDS} | {"crepe_dist.train"}
    others -= {"crepe_dist.train" if name == "supervise" else f"crepe_dist.commands.{name}"}
    assert not others & set(imported.split())


def test_horovodrun_passes_every_flag_on(monkeypatch):
    """The parser of horovodrun also reads the flags of the command. It refuses ambiguous prefixes of its own flags."""
    launch = pytest.importorskip("horovod.runner.launch")
    for name in ("train", "evaluate"):
        flags = [flag for flag in cli.build_parser(name).flags() if flag.startswith("--")]
        monkeypatch.setattr(sys, "argv", ["horovodrun", "-np", "2", "crepe", name, *(f"{flag}=1" for flag in flags)])
        assert launch.parse_args().command[2:] == [f"{flag}=1" for flag in flags]
