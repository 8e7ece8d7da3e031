"""Every mistake gets a sentence that names what was typed, and says what to do; every option of every command is tried."""

from __future__ import annotations

import argparse
import ast
import math
import pkgutil
import shlex
import sys
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest

import crepe_dist
from crepe_dist import config, limits
from crepe_dist import command as commands
from crepe_dist.errors import UserError
from crepe_dist.limits import Limits

ROOT = Path(crepe_dist.__file__).parent
COMMANDS = sorted(
    module.name
    for module in pkgutil.iter_modules(crepe_dist.__path__)
    if not module.ispkg and "\ndef main() -> None:\n" in (ROOT / f"{module.name}.py").read_text()
)
HUGE = "9" * 5000


class _Found(Exception):
    pass


@cache
def parser_of(name: str) -> argparse.ArgumentParser:
    """What a command parses its flags with."""
    if name == "train":
        return config.parser()
    with pytest.MonkeyPatch.context() as patch:

        def found(self: argparse.ArgumentParser, *_: Any) -> Any:
            raise _Found(self)

        patch.setattr(argparse.ArgumentParser, "parse_known_args", found)
        patch.setattr(sys, "argv", [name])
        with pytest.raises(_Found) as caught:
            import_module(f"crepe_dist.{name}").main()
    result: argparse.ArgumentParser = caught.value.args[0]
    return result


def outside(of: Limits) -> Iterator[str]:
    yield from ("nan", "inf", "-inf", "1e400", "abc", "", HUGE, "1,5")
    if of.kind is int:
        yield "1.5"
    step = 1 if of.kind is int else max(abs(of.most), 1.0)
    yield str(of.least if of.open_below else of.least - step)
    yield str(of.most if of.open_above else of.most + step)


def refused(action: argparse.Action) -> Iterator[str]:
    """Values that an option must not take."""
    if action.nargs == 0:
        yield "x"
    elif action.choices:
        yield from ("nonsense", "", str(next(iter(action.choices))) + "x")
    elif isinstance(action.type, Limits):
        yield from outside(action.type)
    elif action.type in (int, float):
        pytest.fail(f"{action.option_strings[-1]} has no limits: give it whole() or real() of crepe_dist.limits")
    elif action.type is not str:
        yield ""
        if action.type not in (None, Path):
            yield "nonsense"


@pytest.fixture
def said(monkeypatch, capsys, tmp_path):
    """What a command says that must fail."""

    def of(name: str, *arguments: object) -> str:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            commands.run(import_module(f"crepe_dist.{name}").main)
        printed = capsys.readouterr().err
        assert ended.value.code == 1, (arguments, printed)
        check(printed)
        return printed

    return of


def check(printed: str) -> None:
    what, *more = printed.rstrip("\n").split("\n")
    assert what.startswith("error: "), printed
    assert more, printed
    assert more[-1].startswith("  do:  "), printed
    assert len(more) <= 2, printed
    assert len(printed) < 1000, "longer than anybody reads"


class TestFlags:
    @pytest.mark.parametrize("name", [name for name in COMMANDS if name != "train"])
    def test_every_option_refuses_what_it_cannot_mean(self, name, said):
        for action in parser_of(name)._actions:
            if not action.option_strings or isinstance(action, (argparse._HelpAction, argparse._VersionAction)):
                continue
            flag = action.option_strings[-1]
            for value in refused(action):
                assert flag in said(name, f"{flag}={value}"), (flag, value)
            if action.nargs is None:
                assert flag in said(name, flag)

    @pytest.mark.parametrize("name", COMMANDS)
    def test_what_is_nearly_an_option_is_named(self, name):
        if name == "train":
            pytest.skip("")

    @pytest.mark.parametrize("name", COMMANDS)
    def test_no_abbreviations(self, name):
        assert not parser_of(name).allow_abbrev


def test_every_error_says_what_to_do():
    """The third argument of a UserError, or its name."""
    without = []
    for path in ROOT.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "UserError":
                starred = any(isinstance(each, ast.Starred) for each in node.args)
                if not starred and len(node.args) < 3 and all(each.arg != "remedy" for each in node.keywords):
                    without.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert not without
