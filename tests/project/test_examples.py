"""The examples in every command's --help: all parse, and the cheap ones run."""

from __future__ import annotations

import gzip
import json
import os
import re
import shlex
import sys
from importlib import import_module
from pathlib import Path

import pytest

import crepe_dist.train
from crepe_dist import command as commands
from crepe_dist.settings import config
from tests.conftest import QUICK, write_csv
from tests.helpers.commands import COMMANDS, parser_of

# Run in this order in one folder; the others need hosts, downloads, a server, a GPU or minutes.
CHEAP = ("prepare", "predict", "evaluate", "export")
NOT_RUN = re.compile(r"s3://|probability auto|horovodrun|crepe_gluon_epoch6|tail -f|--on ")


def examples(name: str) -> list[str]:
    """Lines of the epilog that start this or another command, without the words behind them."""
    text = (parser_of(name).epilog or "").partition("examples:")[2]
    lines = [line.strip() for line in text.splitlines() if line.startswith("  ") and "crepe_dist." in line]
    return [re.split(r"\s{3,}", line)[0] for line in lines]


def arguments(line: str) -> tuple[str, list[str]]:
    """The command that an example starts, and its flags."""
    (part,) = (part for part in line.split(" | ") if "crepe_dist." in part)
    words = shlex.split(part)
    start = words.index("-m")
    return words[start + 1].partition(".")[2], words[start + 2 :]


@pytest.mark.parametrize("name", COMMANDS)
def test_help_has_examples_which_can_be_parsed(name, monkeypatch):
    monkeypatch.chdir(Path(crepe_dist.__path__[0]).parent)  # configs/ is there
    lines = examples(name)
    assert lines
    for line in lines:
        started, flags = arguments(line)
        if started == "train":
            # The settings that tune has written are not in the repository.
            config.parse([flag.replace("tune/reviews/best.yaml", "configs/smoke.yaml") for flag in flags])
            continue
        _, rest = parser_of(started).parse_known_args(flags)
        if started == "supervise":
            config.parse(rest)
        else:
            assert not rest, line


@pytest.fixture
def place(data, tmp_path, monkeypatch):
    """Make small versions of the files that the examples expect."""
    monkeypatch.chdir(tmp_path)
    rows = [{"body": f"some text {n}", "topic": "ab"[n % 2]} for n in range(40)]
    for name in ("train.jsonl", "test.jsonl"):
        Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    Path("logs").write_bytes(gzip.compress(Path("train.jsonl").read_bytes()))
    Path("reviews.csv.gz").write_bytes(gzip.compress(write_csv(Path("reviews.csv"), 100, 0).read_bytes()))
    for folder in ("ag_news_csv", "big"):
        Path(folder).mkdir()
        write_csv(Path(folder) / "train.csv", 60, 1)
        write_csv(Path(folder) / "test.csv", 30, 2)
    Path("ag_news_csv/classes.txt").write_text("one\ntwo\nthree\n")
    for part in ("train", "test"):
        for label in ("pos", "neg"):
            Path("aclImdb", part, label).mkdir(parents=True)
            for n in range(20):
                Path("aclImdb", part, label, f"{n}.txt").write_text(f"{label} {n}")
    Path("letters.csv").write_text("".join(f"{n % 2},{'αβ'[n % 2] * 20}\n" for n in range(40)))
    for name in ("new.txt", "texts.txt"):
        Path(name).write_text("one\ntwo\n")
    for number, name in enumerate(("labelled.csv", "march.csv")):
        write_csv(Path(name), 100, 3 + number)
    settings = ["--data", str(data), "--run-dir", "runs/reviews-1f2e3d4c5b", *QUICK]
    crepe_dist.train.train(config.parse(settings))
    Path("made").mkdir()
    return tmp_path


def test_the_cheap_ones_do_what_they_say(place, data, monkeypatch, capsys):
    def start(name: str, flags: list[str]) -> None:
        monkeypatch.setattr(sys, "argv", [name, *flags])
        with pytest.raises(SystemExit) as ended:
            commands.run(import_module(f"crepe_dist.{name}").main)
        printed = capsys.readouterr()
        assert ended.value.code == 0, (flags, printed.err)
        assert printed.out or "--out" in flags, flags

    done = 0
    for name in CHEAP:
        if name == "predict":
            Path("reviews.csv").write_text("id,body\n1,good\n2,bad\n")
            # What was prepared so far is not what the run was trained on.
            for made in ("data/sample", "data/reviews"):
                (place / made).rename(place / "made" / Path(made).name)
                (place / made).symlink_to(data)
        for line in examples(name):
            if NOT_RUN.search(line):
                continue
            source = "train.jsonl" if "jsonl" in line else "new.txt"
            # Who reads it closes it.
            stream = os.fdopen(os.open(source, os.O_RDONLY), encoding="utf-8", closefd=False)
            monkeypatch.setattr(sys, "stdin", stream)
            start(*arguments(line))
            done += 1
    assert done > 10
