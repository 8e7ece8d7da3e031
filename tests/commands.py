"""The commands of the package, found by their ``main``, and what each parses its flags with."""

from __future__ import annotations

import argparse
import pkgutil
import sys
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

import crepe_dist
from crepe_dist.settings import config

COMMANDS = sorted(
    module.name
    for module in pkgutil.iter_modules(crepe_dist.__path__)
    if not module.ispkg
    and "\ndef main() -> None:\n" in (Path(crepe_dist.__path__[0]) / f"{module.name}.py").read_text(encoding="utf-8")
)


class _Found(Exception):
    pass


@cache
def parser_of(name: str) -> argparse.ArgumentParser:
    if name == "train":
        return config.parser()
    with pytest.MonkeyPatch.context() as patch:

        def found(self: argparse.ArgumentParser, *_: Any) -> Any:
            raise _Found(self)

        patch.setattr(argparse.ArgumentParser, "parse_known_args", found)
        patch.setattr(sys, "argv", [name])
        with pytest.raises(_Found) as caught:
            import_module(f"crepe_dist.{name}").main()
    parser: argparse.ArgumentParser = caught.value.args[0]
    return parser
