"""The documentation is true: the tutorial runs, commands parse, the reference matches the code, links resolve."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from crepe_dist import cli
from crepe_dist.settings.config import parse
from tests.conftest import run

ROOT = Path(__file__).resolve().parents[2]
BLOCK = re.compile(r"^```(python|sh)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.mark.slow
def test_the_tutorial_does_what_it_says(tmp_path):
    blocks = BLOCK.findall((ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8"))
    assert blocks
    printed = {}
    for kind, text in blocks:
        if kind == "python":
            (tmp_path / "messages.py").write_text(text, encoding="utf-8")
            continue
        for line in text.splitlines():
            sender, _, rest = line.rpartition(" | ")
            words = shlex.split(rest)
            program = [sys.executable, *([] if words[0] == "python" else ["-m", "crepe_dist"])]
            stdin = sender.partition('"')[2].rstrip('"') + "\n"
            printed[line] = run([*program, *words[1:]], tmp_path, stdin=stdin)
    quarantined = (tmp_path / "data" / "messages" / "quarantine.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(quarantined) == 3
    answers = [text for line, text in printed.items() if "parcle" in line]
    assert answers[0].startswith("delivery ")
    assert any((tmp_path / "runs").glob("messages-*/report.html"))
    blocks = BLOCK.findall((ROOT / "docs" / "how-to" / "python.md").read_text(encoding="utf-8"))
    (tmp_path / "page").mkdir()
    (tmp_path / "messages.csv").rename(tmp_path / "page" / "messages.csv")
    script = [sys.executable, "-c", "\n".join(text for _, text in blocks)]
    lines = [line.split() for line in run(script, tmp_path / "page").splitlines()]
    assert float(next(line[0] for line in lines if re.fullmatch(r"[\d.]+", line[0]) and len(line) == 1)) > 0.9
    assert any(line[0] == "delivery" for line in lines)
    assert any("urgent" in text for line in lines for text in line)
    blocks = BLOCK.findall((ROOT / "docs" / "how-to" / "from-scikit-learn.md").read_text(encoding="utf-8"))
    script = [sys.executable, "-c", "\n".join(text for _, text in blocks)]
    lines = [line.split() for line in run(script, tmp_path / "page").splitlines()]
    assert all(float(lines[place][0]) > 0.9 for place in (0, 1))
    assert lines[-1] == ["['billing']"]


def test_the_reference_is_that_of_the_code():
    run([sys.executable, "tools/reference.py", "--check"], ROOT)


def test_the_site_builds_and_no_link_leads_nowhere(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "site" / "tutorial" / "index.html").is_file()


def check(name: str, words: list[str]) -> None:
    """Parse the flags of a command."""
    if name == "supervise":
        words = cli.build_parser(name).parse_known_args(words)[1]
    if name in ("supervise", "train"):
        parse(words)
    else:
        cli.command_class(name).parsed(words)


def test_the_commands_of_all_pages_are_understood():
    """Check the command lines of all pages. Another test also runs those of the tutorial."""
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    text = "\n".join(page.read_text(encoding="utf-8") for page in pages).replace("\\\n", " ")
    commands = re.findall(r"^    (?:uv run (?:--no-sync )?)?crepe (\w+)([^#\n]*)", text, re.MULTILINE)
    assert {name for name, _ in commands} >= {"train", "supervise", "prepare", "evaluate", "predict", "serve", "export"}
    for name, flags in commands:
        check(name, shlex.split(flags))


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_help_has_examples_which_can_be_parsed(name, monkeypatch):
    monkeypatch.chdir(ROOT)  # configs/ is there
    text = (cli.build_parser(name).epilog or "").partition("examples:")[2]
    examples = re.findall(r"^  .*-m crepe_dist (\w+)((?:(?!   | \| ).)*)", text, re.MULTILINE)
    assert examples
    for started, flags in examples:
        check(started, shlex.split(flags))
