"""The console command `crepe`, as a user types it, and the completion of its words in a real bash."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

import crepe_dist
from crepe_dist import cli, invocation
from tests.conftest import command, run

CREPE = str(Path(sys.executable).with_name("crepe"))
PACKAGE = Path(crepe_dist.__path__[0])
# What no help may wait for.
HEAVY = {
    "fastapi",
    "horovod",
    "matplotlib",
    "mxnet",
    "onnx",
    "onnxruntime",
    "pandas",
    "pyarrow",
    "tensorboardX",
    "uvicorn",
}


def test_every_command_is_listed_and_no_other():
    found = [
        re.findall(r"^class (\w+)\(.*(?:Command|Flags)\):$", path.read_text(), re.M) for path in PACKAGE.glob("*.py")
    ]
    assert set(cli.COMMANDS) == {name.lower() for names in found for name in names} | {"train"}


def test_help_has_a_line_for_each_command(tmp_path):
    printed = run([CREPE, "--help"], tmp_path)
    assert printed.startswith("usage: crepe COMMAND [options]\n")
    for group, commands in cli.GROUPS.items():
        listed = printed.split(f"\n{group}:\n")[1].split("\n\n")[0].splitlines()
        assert [line.split()[0] for line in listed] == list(commands)
    assert max(map(len, printed.splitlines())) <= 90
    assert run([CREPE], tmp_path) == printed
    assert run([sys.executable, "-m", "crepe_dist"], tmp_path) == printed.replace(
        "crepe COMMAND", "python -m crepe_dist COMMAND"
    )


def test_version(tmp_path):
    assert run([CREPE, "--version"], tmp_path) == f"crepe_dist {crepe_dist.__version__}\n"


def test_a_typo_is_answered_with_the_near_name(tmp_path):
    printed = run([CREPE, "trian", "--epochs", "3"], tmp_path, code=1)
    assert printed == "error: there is no command trian\n  do:  did you mean train?\n"
    assert "give one of prepare, inspect," in run([CREPE, "zzz"], tmp_path, code=1)
    assert "did you mean --version?" in run([CREPE, "--versoin"], tmp_path, code=1)


def test_horovodrun_starts_it(tmp_path):
    launcher = [sys.executable, str(Path(__file__).parent / "helpers" / "horovodrun.py"), "-np", "2"]
    printed = run([*launcher, CREPE, "train", "--data", "nowhere"], tmp_path, code=1)
    assert re.search(r"\[[01]\]<stderr>:error: nowhere is not a prepared data set", printed)


@pytest.mark.parametrize("options", [("predict", "--text", ""), ("train", "--data", "")])
def test_an_empty_argument_reaches_the_command(options, tmp_path):
    name, *rest = options
    module = run([*command(name), *rest], tmp_path, code=1)
    assert run([CREPE, *options], tmp_path, code=1) == module.replace("python -m crepe_dist ", "crepe ")


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
    assert f"{prog} --help-all lists the options" in run([*start, "--model.zzzzzz=3"], tmp_path, code=1)


@pytest.mark.parametrize(
    ("start", "remedy"),
    [
        ([CREPE, "predict"], "crepe train"),
        ([sys.executable, "-m", "crepe_dist", "predict"], "python -m crepe_dist train"),
    ],
)
@pytest.mark.parametrize("uv", [{}, {"UV": "/usr/bin/uv"}])
def test_remedies_name_commands_as_the_user_would_type_them(start, remedy, uv, tmp_path, monkeypatch):
    for name, value in uv.items():
        monkeypatch.setenv(name, value)
    said = run(start, tmp_path, code=1)
    assert f"do:  train one ({'uv run ' * bool(uv)}{remedy})" in said


def test_a_rank_names_the_launcher_too(monkeypatch):
    two = {"HOROVOD_SIZE": "2", "HOROVOD_CROSS_SIZE": "1"}
    monkeypatch.setattr(sys, "argv", ["/venv/crepe_dist/train.py"])
    assert invocation.launched("train", {}) == "python -m crepe_dist train"
    assert invocation.launched("train", two) == "horovodrun -np 2 python -m crepe_dist train"
    assert invocation.launched("train", {**two, "UV": "uv"}) == "uv run horovodrun -np 2 python -m crepe_dist train"
    assert invocation.launched("train", {**two, "HOROVOD_CROSS_SIZE": "2"}) == "python -m crepe_dist train"
    supervised = {**two, invocation.STARTED_AS: "uv run crepe "}
    assert invocation.launched("train", supervised) == "uv run crepe supervise -np 2"
    assert invocation.typed("prepare", supervised) == "uv run crepe prepare"


@pytest.mark.parametrize("name", ["train", "prepare"])
def test_help_shows_the_common_options_and_where_the_others_are(name, tmp_path):
    short, whole = (run([CREPE, name, flag], tmp_path) for flag in ("--help", "--help-all"))
    flags = cli.parser_of(name)
    assert f"crepe {name} --help-all shows all options." in short
    assert len(short.splitlines()) < 62
    assert "default: null" not in short
    for action in flags._actions:
        shown = [f" {flag}" in short for flag in action.option_strings]
        assert all(f" {flag}" in whole for flag in action.option_strings)
        assert not action.option_strings or any(shown) or not set(action.option_strings) & set(flags.common)
    assert set(flags.common) <= set(flags.flags())
    assert len(whole.splitlines()) > len(short.splitlines()) + 30


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_each_command_gives_its_own_help_and_waits_for_nothing_else(name, tmp_path):
    program = (
        "import sys\nfrom crepe_dist.__main__ import start\n"
        f"sys.argv = ['crepe', {name!r}, '--help']\n"
        "try:\n    start()\n"
        "finally:\n    print('imported:', *sorted(sys.modules))\n"
    )
    printed, _, imported = run([sys.executable, "-c", program], tmp_path).partition("imported: ")
    assert printed.startswith(f"usage: crepe {name} ")
    assert not HEAVY & set(imported.split())
    others = {f"crepe_dist.{other}" for other in cli.COMMANDS} - {f"crepe_dist.{name}", "crepe_dist.runs"}
    others -= {"crepe_dist.train"} if name == "supervise" else set()
    assert not others & set(imported.split())


class TestCompletion:
    @pytest.fixture(scope="class")
    def script(self, tmp_path_factory):
        path = tmp_path_factory.mktemp("completion") / "crepe.bash"
        path.write_text(run([CREPE, "--print-completion", "bash"], path.parent))
        return path

    def completed(self, script: Path, *words: str, last: Sequence[str] = ("",)) -> list[list[str]]:
        """Return bash's completions of each of the last words, behind the others."""
        program = (
            'source "$1"; shift\n'
            "[[ $(complete -p crepe) =~ -F\\ ([^ ]+) ]] || exit 9\n"
            "complete=${BASH_REMATCH[1]}\n"
            'while IFS= read -r word; do\nCOMP_WORDS=("$@" "$word"); COMP_CWORD=$#; COMPREPLY=()\n'
            '"$complete" crepe "$word"\necho "${COMPREPLY[*]}"\ndone\n'
        )
        done = subprocess.run(
            ["bash", "--norc", "-c", program, "bash", str(script), "crepe", *words],
            cwd=script.parent,
            input="".join(f"{word}\n" for word in last),
            capture_output=True,
            text=True,
            check=True,
        )
        assert not done.stderr
        return [line.split() for line in done.stdout.splitlines()]

    def test_commands(self, script):
        assert self.completed(script, last=["", "tr"]) == [list(cli.COMMANDS), ["train"]]

    @pytest.mark.parametrize("name", cli.COMMANDS)
    def test_every_option_of_every_command(self, script, name):
        flags = [flag for flag in cli.parser_of(name).flags() if flag.startswith("--")]
        assert len(flags) >= 2
        for flag, offered in zip(flags, self.completed(script, name, last=[flag[:-1] for flag in flags])):
            assert flag in offered, flag

    @pytest.mark.parametrize(
        ("words", "offered"),
        [
            (("train", "--device", ""), ["auto", "gpu", "cpu"]),
            (("train", "--size", "s"), ["small"]),
            (("predict", "--format", "j"), ["jsonl"]),
            (("train", "--config", "crepe.b"), ["crepe.bash"]),
            (("prepare", "crepe.b"), ["crepe.bash"]),
        ],
    )
    def test_values_and_files(self, script, words, offered):
        assert self.completed(script, *words[:-1], last=words[-1:]) == [offered]

    def test_zsh_gets_a_script_of_its_own(self, tmp_path):
        printed = run([CREPE, "--print-completion", "zsh"], tmp_path)
        assert printed.lstrip().startswith("#compdef crepe")
        for name in cli.COMMANDS:
            assert re.search(rf"^ +{name}:'", printed, re.MULTILINE), name


def test_horovodrun_passes_every_flag_on(monkeypatch):
    """Its parser also reads the flags behind the command, and refuses those that begin like several of its own."""
    launch = pytest.importorskip("horovod.runner.launch")
    for name in ("train", "evaluate"):
        flags = [flag for flag in cli.parser_of(name).flags() if flag.startswith("--")]
        monkeypatch.setattr(sys, "argv", ["horovodrun", "-np", "2", "crepe", name, *(f"{flag}=1" for flag in flags)])
        assert launch.parse_args().command[2:] == [f"{flag}=1" for flag in flags]
